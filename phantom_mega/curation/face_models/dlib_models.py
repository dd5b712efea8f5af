"""dlib's face detector and recogniser (King 2009), whose models the package face-recognition-models ships."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np

from phantom_mega.curation.face_models import LEAST_CONFIDENCE, MAX_FACES, Face, inside, unit
from phantom_mega.errors import SetupError

_LANDMARKS, _RECOGNIZER = "shape_predictor_5_face_landmarks.dat", "dlib_face_recognition_resnet_model_v1.dat"
_NEEDS = "faces.face_backend=dlib needs the packages dlib-bin and face-recognition-models: pip install -e '.[curation]'"
# The detector's window has 80 pixels; of a crop of 512 pixels, faces from 40 on are wanted.
_DOUBLED = 1


class DlibFaces:
    """Faces of a picture: histograms of gradients, landmarks of eyes and nose, a vector of 128 numbers.

    The detector's score has no bounds (it accepts from 0 on); confidence is its logistic function, 0.5 at 0.

    Raises:
        SetupError: the packages are not there.
    """

    def __init__(self):
        try:
            import dlib
        except ImportError:
            raise SetupError(_NEEDS) from None
        folder = models_folder()
        self._detector = dlib.get_frontal_face_detector()
        self._landmarks = dlib.shape_predictor(str(folder / _LANDMARKS))
        self._recognizer = dlib.face_recognition_model_v1(str(folder / _RECOGNIZER))

    def __call__(self, image: np.ndarray) -> list[Face]:
        """Faces of uint8 [H, W, 3], RGB, the surest first."""
        image = np.ascontiguousarray(image)
        least = math.log(LEAST_CONFIDENCE / (1 - LEAST_CONFIDENCE))
        rectangles, scores, _ = self._detector.run(image, _DOUBLED, least)
        faces = []
        for score, rectangle in sorted(zip(scores, rectangles, strict=True), key=lambda found: -found[0])[:MAX_FACES]:
            box = (rectangle.left(), rectangle.top(), rectangle.right() + 1, rectangle.bottom() + 1)
            vector = self._recognizer.compute_face_descriptor(image, self._landmarks(image, rectangle))
            faces.append(Face(inside(box, *image.shape[:2]), 1 / (1 + math.exp(-score)), unit(np.array(vector))))
        return faces


def models_folder() -> Path:
    """Where the package keeps its files; it is not imported, for that fails without setuptools' old pkg_resources.

    Raises:
        SetupError: it is not installed.
    """
    found = importlib.util.find_spec("face_recognition_models")
    folder = Path(found.submodule_search_locations[0]) / "models" if found else None
    if folder is None or not (folder / _RECOGNIZER).is_file():
        raise SetupError(_NEEDS)
    return folder
