"""Models that find faces in a picture and give each a vector; the cosine of two tells whether it is one person."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from phantom_mega.errors import UserError

FACE_BACKENDS = ("none", "dlib", "insightface")
# Less sure ones are not even written down; where the line is drawn is for stage `faces`.
LEAST_CONFIDENCE = 0.4
MAX_FACES = 16  # of a picture: the surest


@dataclass
class FaceSettings:
    """Who finds faces and tells them apart (paper, supplement 4: face detection and ArcFace)."""

    face_backend: str = "none"
    """`dlib` (its models come as a package and work offline), `insightface` (SCRFD and ArcFace, by path), or `none`."""
    face_categories: list[str] = field(default_factory=lambda: ["human"])
    """Categories of subjects that have faces."""
    face_detector_path: str = ""
    """SCRFD detector with landmarks as ONNX, as buffalo_l's det_10g.onnx, for `insightface`."""
    face_recognizer_path: str = ""
    """ArcFace recogniser as ONNX, as buffalo_l's w600k_r50.onnx, for `insightface`."""
    face_scale_inside: bool = False
    """The recogniser scales pixels itself (models exported from MXNet); others are given (x - 127.5) / 127.5."""

    def check(self) -> None:
        """Raises UserError for a backend that does not exist or misses its models."""
        if self.face_backend not in FACE_BACKENDS:
            raise UserError(f"faces.face_backend={self.face_backend}; use one of {', '.join(FACE_BACKENDS)}")
        for name in ("face_detector_path", "face_recognizer_path") if self.face_backend == "insightface" else ():
            if not Path(getattr(self, name)).is_file():
                raise UserError(
                    f"faces.{name}={getattr(self, name)!r}: no such file; faces.face_backend=insightface needs a SCRFD "
                    "detector and an ArcFace recogniser as ONNX files (det_10g.onnx and w600k_r50.onnx of buffalo_l)"
                )


@dataclass(frozen=True)
class Face:
    """A face in a picture.

    Attributes:
        box: x0, y0, x1, y1 in pixels, inside of the picture.
        confidence: from 0 to 1; only of one backend do they compare.
        vector: float32 [D] of length 1.
    """

    box: tuple[float, float, float, float]
    confidence: float
    vector: np.ndarray


FaceModel = Callable[[np.ndarray], list[Face]]  # of uint8 [H, W, 3], RGB


def open_face_model(settings: FaceSettings) -> FaceModel:
    """The model of a backend that is not `none`.

    Raises:
        UserError: it cannot be loaded.
    """
    settings.check()
    if settings.face_backend == "dlib":
        from phantom_mega.curation.face_models.dlib_models import DlibFaces

        return DlibFaces()
    from phantom_mega.curation.face_models.arcface import ArcFaces

    return ArcFaces(settings)


def unit(vector: np.ndarray) -> np.ndarray:
    """A vector as float32 of length 1."""
    vector = np.asarray(vector, np.float32).ravel()
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def inside(box: tuple[float, float, float, float], height: int, width: int) -> tuple[float, float, float, float]:
    """The part of a box that lies in the picture."""
    x0, y0, x1, y1 = (float(value) for value in box)
    return max(0.0, x0), max(0.0, y0), min(float(width), x1), min(float(height), y1)
