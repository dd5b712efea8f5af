"""FaceSim-Arc, FaceSim-Cur, FaceSim-glint: cosine of faces in frames and in references, by three recognisers.

The paper (4.2, table 1, where the last is spelled "glink") cites ArcFace (arXiv 1801.07698) and CurricularFace
(arXiv 2004.00288), and says no more. As in OpenS2V-Eval (eval/get_facesim.py), a picture's face is the largest that
SCRFD finds, aligned by five landmarks, and negative cosines count as zero. There, faces for CurricularFace are aligned
at 224 pixels and scaled down; here all are aligned at 112. There, frames without a face are left out of the mean, which
rewards videos that hide the face; here such frames count as zero.

F: frames that are looked at, R: references that count, D: width of a vector.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from phantom_mega.curation.categories import category_of
from phantom_mega.curation.face_models.arcface import Recognizer, Scrfd, align
from phantom_mega.errors import UserError
from phantom_mega.evaluation.curricular_face import CurricularFace
from phantom_mega.evaluation.encoders import check_choice, check_counts
from phantom_mega.evaluation.frames import uniform_indices
from phantom_mega.evaluation.image_similarity import NO_REFERENCE, cosines, frames_without, mean_similarity
from phantom_mega.evaluation.metric import Item, Measured, Metric
from phantom_mega.evaluation.remembered import Remembered

FACES = ("largest", "closest")
NO_PERSON = "no reference is a person"
PACKS = "github.com/deepinsight/insightface/releases/tag/v0.7"
DETECTOR_SOURCE = f"det_10g.onnx of buffalo_l ({PACKS})"
_WITHOUT_FACES = ("animal", "clothes", "product", "landmark")
# Of uint8 [H, W, 3]: (box, confidence, landmarks [5, 2]) of every face.
Detector = Callable[[np.ndarray], list[tuple[tuple[float, float, float, float], float, np.ndarray]]]


@dataclass
class FaceSimSettings:
    """Who finds faces and who tells them apart."""

    recognizer: str = ""
    """Recogniser of aligned faces: an ONNX file; for facesim_cur the published weights of CurricularFace, too."""
    detector: str = ""
    """SCRFD detector with landmarks: an ONNX file, as buffalo_l's det_10g.onnx."""
    confidence: float = 0.5
    """Of a face at least; 0.5 is SCRFD's authors' choice."""
    face: str = "largest"
    """Which face of a frame is compared: the `largest`, or to each reference the `closest` one, for cases with several
    people. The closest of many faces is more alike by chance."""
    scale_inside: bool = False
    """The recogniser's ONNX file scales pixels itself (models exported from MXNet)."""
    frames: int = 10
    """Frames of a video, evenly spaced, the first and the last among them."""

    def check(self, metric: str, source: str) -> None:
        """Raise UserError on a value out of range, or a file that is not there.

        Args:
            metric: whose settings these are, for messages.
            source: where its recogniser comes from.
        """
        check_choice(metric, "face", self.face, FACES)
        check_counts(metric, frames=self.frames)
        if not 0 < self.confidence < 1:
            raise UserError(f"{metric}.confidence={self.confidence}; it must be between 0 and 1")
        lacking = [
            f"{metric}.{name}={getattr(self, name)!r}: no such file; get {where}"
            for name, where in (("detector", DETECTOR_SOURCE), ("recognizer", source))
            if not Path(getattr(self, name)).is_file()
        ]
        if lacking:
            raise UserError("; ".join(lacking))


# -- pure


def counts(label: str, has_face: bool) -> bool:
    """Whether a reference is asked for its face.

    Of what has no name, a person is expected. Animals, clothes, products and places have no face to compare, whatever a
    detector says. Other things count if they have one.

    Args:
        label: of the reference; "" where unknown.
        has_face: whether one was found in it.
    """
    category = category_of(label) if label.strip() else "human"
    return category == "human" or (has_face and category not in _WITHOUT_FACES)


def face_similarities(frames: Sequence[np.ndarray], references: Sequence[np.ndarray | None]) -> np.ndarray:
    """Cosine of each reference with the most alike face of each frame, at least 0; NaN where a face is missing.

    Args:
        frames: vectors [faces, D] of each frame, of length 1; there may be none.
        references: vector [D] of each, of length 1, or None.

    Returns:
        float64 [F, R].
    """
    found = np.full((len(frames), len(references)), np.nan)
    for row, vectors in enumerate(frames):
        for column, reference in enumerate(references):
            if len(vectors) and reference is not None:
                found[row, column] = max(0.0, cosines(vectors, reference[None].astype(np.float64)).max())
    return found


# -- the metric


@dataclass(frozen=True)
class Seen:
    """Aligned faces, uint8 [112, 112, 3] each, the largest first.

    Attributes:
        frames: of each frame that is looked at.
        references: of each reference.
    """

    frames: list[list[np.ndarray]] = field(default_factory=list)
    references: list[list[np.ndarray]] = field(default_factory=list)


class Faces:
    """Aligned faces of items; those of the last item are kept, for all recognisers look at the same ones.

    Args:
        detect: finds faces.
        confidence: of a face at least.
    """

    def __init__(self, detect: Detector, confidence: float):
        self.detect, self.confidence = detect, confidence
        self.seen = Remembered(self._seen)

    def aligned(self, image: np.ndarray) -> list[np.ndarray]:
        """Faces of a picture, the largest first."""
        sure = [face for face in self.detect(image) if face[1] >= self.confidence]
        sure.sort(key=lambda face: (face[0][2] - face[0][0]) * (face[0][3] - face[0][1]), reverse=True)
        return [align(image, landmarks) for _, _, landmarks in sure]

    def _seen(self, item: Item, count: object) -> Seen:
        frames = [self.aligned(item.frames[index]) for index in uniform_indices(len(item.frames), count)]
        return Seen(frames, [self.aligned(image) for image in item.references])


class FaceSim:
    """Mean over frames and references of persons of the cosine of their faces.

    A frame without a face counts as zero, and so does a person's reference without one.

    Args:
        name, title: of the metric.
        faces: finds them.
        recognize: from an aligned face to its vector [D] of length 1.
        settings: with `face` and `frames`.
    """

    higher_is_better = True

    def __init__(
        self,
        name: str,
        title: str,
        faces: Faces,
        recognize: Callable[[np.ndarray], np.ndarray],
        settings: FaceSimSettings,
    ):
        self.name, self.title, self.faces, self.recognize, self.settings = name, title, faces, recognize, settings

    def measure(self, item: Item) -> Measured:
        if not item.references:
            return Measured(0.0, NO_REFERENCE)
        seen = self.faces.seen(item, self.settings.frames)
        pairs = zip(item.labels, seen.references, strict=True)
        asked = [number for number, (label, faces) in enumerate(pairs) if counts(label, bool(faces))]
        if not asked:
            return Measured(0.0, NO_PERSON)
        most = 1 if self.settings.face == "largest" else None
        frames = [np.array([self.recognize(face) for face in faces[:most]]) for faces in seen.frames]
        references = [self.recognize(seen.references[i][0]) if seen.references[i] else None for i in asked]
        value, detail = mean_similarity(face_similarities(frames, references), [i + 1 for i in asked])
        indices = uniform_indices(len(item.frames), self.settings.frames)
        missing = [f"no face in reference {i + 1}" for i, one in zip(asked, references) if one is None]
        missing.append(frames_without("no face", [not len(vectors) for vectors in frames], indices))
        return Measured(value, "; ".join(filter(None, missing)), detail)


@functools.lru_cache(maxsize=1)
def _faces(detector: str, confidence: float) -> Faces:
    return Faces(Scrfd(detector, "detector"), confidence)


forget_models = _faces.cache_clear


def _build(name: str, title: str, source: str, settings: FaceSimSettings, device: torch.device | str) -> Metric:
    settings.check(name, source)
    try:  # detectors are shared, so they do not know whose settings name them
        faces = _faces(settings.detector, settings.confidence)
    except UserError as error:
        raise UserError(f"{name}.{error}") from None
    what = f"{name}.recognizer"
    if name == "facesim_cur" and Path(settings.recognizer).suffix != ".onnx":
        recognize = CurricularFace(settings.recognizer, what, device)
    else:
        recognize = Recognizer(settings.recognizer, what, settings.scale_inside)
    return FaceSim(name, title, faces, recognize, settings)


_RECOGNIZERS = {
    "facesim_arc": ("FaceSim-Arc", f"w600k_r50.onnx of buffalo_l ({PACKS})"),
    "facesim_cur": (
        "FaceSim-Cur",
        "huggingface.co/BestWishYsh/OpenS2V-Weight: glint360k_curricular_face_r101_backbone.bin",
    ),
    "facesim_glint": ("FaceSim-glint", f"glintr100.onnx of antelopev2 ({PACKS})"),
}
METRICS = {name: (FaceSimSettings, functools.partial(_build, name, *known)) for name, known in _RECOGNIZERS.items()}
