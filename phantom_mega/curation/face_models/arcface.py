"""SCRFD (Guo et al. 2021) and ArcFace (Deng et al. 2019) as the ONNX files that insightface's model packs hold.

Their outputs are decoded and faces aligned as insightface does (`model_zoo/scrfd.py`, `utils/face_align.py`), on the
runtime alone: the package would pull in much that is not needed here.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from phantom_mega.curation.face_models import LEAST_CONFIDENCE, MAX_FACES, Face, FaceSettings, inside, unit
from phantom_mega.errors import SetupError

SIDE = 112  # of an aligned face
# Eyes, nose and corners of the mouth in an aligned face.
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
# Squares that a picture is put into: at the large one, a face that fills a tight crop is missed.
DETECTOR_SIDES = (640, 128)
_STRIDES = {9: (8, 16, 32), 15: (8, 16, 32, 64, 128)}  # by the number of outputs
_ANCHORS = {9: 2, 15: 1}
_SAME = 0.4  # IoU of two boxes of one face


# -- pure


def decode_scrfd(outputs: Sequence[np.ndarray], side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Faces in the outputs of a SCRFD detector.

    Each stride has scores [N, 1], distances to the left, top, right and bottom [N, 4] and landmarks [N, 10], the latter
    two from the anchor's centre and in strides; the outputs are all scores, then all distances, then all landmarks.

    Args:
        outputs: of the network, 9 or 15, each with or without a batch dimension of 1.
        side: of its square input.

    Returns:
        boxes [M, 4], scores [M] and landmarks [M, 5, 2] of those that are at least `LEAST_CONFIDENCE`, in pixels.
    """
    strides, anchors = _STRIDES[len(outputs)], _ANCHORS[len(outputs)]
    levels = [[np.reshape(one, (-1, one.shape[-1])) for one in outputs[i :: len(strides)]] for i in range(len(strides))]
    boxes, scores, landmarks = [], [], []
    for stride, (score, distance, points) in zip(strides, levels, strict=True):
        cells = side // stride
        centres = np.stack(np.mgrid[:cells, :cells][::-1], -1).reshape(-1, 2).repeat(anchors, 0) * stride
        keep = score[:, 0] >= LEAST_CONFIDENCE
        centre, distance = centres[keep], distance[keep] * stride
        boxes.append(np.concatenate([centre - distance[:, :2], centre + distance[:, 2:]], 1))
        scores.append(score[keep, 0])
        landmarks.append(centre[:, None] + points[keep].reshape(-1, 5, 2) * stride)
    return np.concatenate(boxes), np.concatenate(scores), np.concatenate(landmarks)


def similarity_to(points: np.ndarray, target: np.ndarray = TEMPLATE) -> np.ndarray:
    """The similarity transform [2, 3] that takes points [N, 2] nearest to the target: least squares, no mirroring."""
    # As complex numbers, turning and scaling is one factor.
    source, goal = (np.asarray(one, np.float64) @ (1, 1j) for one in (points, target))
    moved = source - source.mean()
    factor = np.vdot(moved, goal - goal.mean()) / max(np.vdot(moved, moved).real, 1e-12)
    shift = goal.mean() - factor * source.mean()
    return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])


def align(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """A face of uint8 [H, W, 3] as uint8 [112, 112, 3], its landmarks at the template's."""
    return cv2.warpAffine(image, similarity_to(landmarks), (SIDE, SIDE))


def into_square(image: np.ndarray, side: int) -> tuple[np.ndarray, float]:
    """A picture scaled to fit, in the upper left corner of a black square, and the scale; nothing grows."""
    scale = min(1.0, side / max(image.shape[:2]))
    height, width = (max(1, round(scale * length)) for length in image.shape[:2])
    square = np.zeros((side, side, 3), np.uint8)
    square[:height, :width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return square, scale


def as_input(image: np.ndarray, mean: float, deviation: float) -> np.ndarray:
    """uint8 [H, W, 3] as float32 [1, 3, H, W]."""
    return ((image.astype(np.float32) - mean) / deviation).transpose(2, 0, 1)[None]


# -- the models


class Scrfd:
    """A SCRFD detector of faces with landmarks.

    Args:
        path: of the ONNX file.
        what: the setting that names it, for messages.

    Raises:
        SetupError: it cannot be loaded, or is no such model.
    """

    def __init__(self, path: str, what: str):
        cv2.setNumThreads(1)
        self._session = _open(path, what)
        count, shape = len(self._session.get_outputs()), self._session.get_inputs()[0].shape
        if count not in _STRIDES:
            raise SetupError(
                f"{what}={path} is no SCRFD detector with landmarks: it has {count} outputs instead of 9 or 15"
            )
        fixed = [length for length in shape[2:4] if isinstance(length, int)]
        self._sides = (fixed[0],) if fixed else DETECTOR_SIDES
        _try(self, path, what)

    def __call__(self, image: np.ndarray) -> list[tuple[tuple[float, float, float, float], float, np.ndarray]]:
        """(box inside of the picture, confidence, landmarks [5, 2]) of faces of uint8 [H, W, 3], RGB, surest first."""
        found = []
        for side in self._sides:
            square, scale = into_square(image, side)
            boxes, scores, landmarks = decode_scrfd(_run(self._session, as_input(square, 127.5, 128.0)), side)
            found.append((boxes / scale, scores, landmarks / scale))
        boxes, scores, landmarks = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return [
            (inside(tuple(boxes[i]), *image.shape[:2]), float(scores[i]), landmarks[i])
            for i in suppress(boxes, scores)[:MAX_FACES]
        ]


class Recognizer:
    """A recogniser of aligned faces, as ArcFace.

    Args:
        path: of the ONNX file.
        what: the setting that names it, for messages.
        scale_inside: the model scales pixels itself; others are given (x - 127.5) / 127.5.

    Raises:
        SetupError: it cannot be loaded, or is no such model.
    """

    def __init__(self, path: str, what: str, scale_inside: bool = False):
        self._session = _open(path, what)
        self._scaling = (0.0, 1.0) if scale_inside else (127.5, 127.5)
        _try(self, path, what)

    def __call__(self, face: np.ndarray) -> np.ndarray:
        """The vector, float32 [D] of length 1, of an aligned face, uint8 [112, 112, 3], RGB."""
        (vector,) = _run(self._session, as_input(face, *self._scaling))
        return unit(vector)


class ArcFaces:
    """Faces of a picture.

    Args:
        settings: with the paths of both models.

    Raises:
        SetupError: one cannot be loaded, or is no such model.
    """

    def __init__(self, settings: FaceSettings):
        self._detect = Scrfd(settings.face_detector_path, "faces.face_detector_path")
        self._recognize = Recognizer(
            settings.face_recognizer_path, "faces.face_recognizer_path", settings.face_scale_inside
        )

    def __call__(self, image: np.ndarray) -> list[Face]:
        """Faces of uint8 [H, W, 3], RGB, the surest first."""
        return [
            Face(box, confidence, self._recognize(align(image, landmarks)))
            for box, confidence, landmarks in self._detect(image)
        ]


def _try(model: Scrfd | Recognizer, path: str, what: str) -> None:
    """Use a model once: a file that is another model fails here, not at the first face."""
    try:
        model(np.zeros((SIDE, SIDE, 3), np.uint8))
    except Exception as error:  # the runtime raises its own, our decoding what numpy does
        raise SetupError(f"{what}={path} cannot be used ({type(error).__name__}: {str(error)[:300]})") from None


def suppress(boxes: np.ndarray, scores: np.ndarray) -> list[int]:
    """Numbers of the boxes that no surer one covers, the surest first."""
    if not len(boxes):
        return []
    as_sizes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).astype(np.float64)
    return [int(i) for i in cv2.dnn.NMSBoxes(as_sizes.tolist(), scores.tolist(), 0.0, _SAME)]


def _open(path: str, name: str):
    try:
        import onnxruntime
    except ImportError:
        raise SetupError(f"{name}={path} needs the package onnxruntime: pip install -e '.[curation]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # a worker has one core
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own, for a damaged file as for an operator that it does not know
        raise SetupError(f"{name}={path} cannot be loaded ({str(error)[:300]})") from None


def _run(session, data: np.ndarray) -> list[np.ndarray]:
    return session.run(None, {session.get_inputs()[0].name: data})
