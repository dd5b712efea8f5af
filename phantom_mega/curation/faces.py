"""Stages `face_detections` and `faces`: all faces in the crops of people, and which one of them is the subject's.

Where two people stand close, the face of one lies in the crops of both. Faces of crops of one moment are therefore laid
over each other in the frame and given out one to one, by how well each lies where the head of a box is expected (IoU).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
from scipy.optimize import linear_sum_assignment

from phantom_mega.curation.boxes import Box, area, intersection
from phantom_mega.curation.columns import BOX, FLOAT, TEXT, VECTOR, fields_of
from phantom_mega.curation.engine.stage import Rejection, Row, Stage, verdict
from phantom_mega.curation.face_models import Face, FaceSettings, open_face_model
from phantom_mega.errors import UserError
from phantom_mega.images import open_image

# `box` is that in the crop; `pixels` is the shorter side of the face in the frame.
FOUND = pa.struct([("box", BOX), ("confidence", FLOAT), ("pixels", FLOAT), ("sharpness", FLOAT)])
DETECTIONS = (
    pa.field("crop_id", TEXT),
    pa.field("clip_id", TEXT),
    pa.field("time", FLOAT),
    pa.field("crop_box", BOX),
    pa.field("found", pa.list_(FOUND)),
    pa.field("vectors", pa.list_(VECTOR)),
)
_SHARP_SIDE = 112  # pixels of a face at which sharpness is measured
_HAIR = 0.25  # of a face's height, above its box: detectors begin at the forehead


@dataclass
class FaceMatchSettings:
    """Which faces are taken; no picture is looked at again when these change."""

    min_face_confidence: float = 0.5
    """Of the detector, at least; 0.5 is what dlib's and SCRFD's own authors take."""
    min_face_pixels: float = 40.0
    """Shorter side of the face in the frame, at least."""
    min_face_sharpness: float = 10.0
    """Variance of the Laplacian of the face at 112 pixels, at least; below, dlib's vectors change by the blur."""
    min_face_fit: float = -0.5
    """Generalised IoU of the face with the expected head at least: 1 there, 0 beside it, -0.5 three faces away."""
    same_face_overlap: float = 0.5
    """Faces of two crops are one if they have this share of the smaller one in common."""

    def check(self) -> None:
        """Raises UserError for values out of range."""
        for name, least in (("min_face_confidence", 0.0), ("min_face_fit", -1.0), ("same_face_overlap", 0.0)):
            if not least <= getattr(self, name) <= 1:
                raise UserError(f"face_matching.{name}={getattr(self, name)} must be from {least:g} to 1")


# -- pure: boxes


def generalised_iou(a: Box, b: Box) -> float:
    """From 1 for equal boxes, by 0 for boxes side by side, towards -1 far apart (Rezatofighi et al. 2019)."""
    union = area(a) + area(b) - intersection(a, b)
    hull = area((min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])))
    return intersection(a, b) / union - (hull - union) / hull if union > 0 else -1.0


def in_frame(face: Box, crop: Box) -> tuple[float, float, float, float]:
    """A box in the crop, as fractions of the frame."""
    width, height = crop[2] - crop[0], crop[3] - crop[1]
    return crop[0] + face[0] * width, crop[1] + face[1] * height, crop[0] + face[2] * width, crop[1] + face[3] * height


def head_of(subject: Box, face: Box) -> tuple[float, float, float, float]:
    """Where a face of this size is expected in a subject's box: in the middle, below the hair."""
    middle, width, height = (subject[0] + subject[2]) / 2, face[2] - face[0], face[3] - face[1]
    top = subject[1] + _HAIR * height
    return middle - width / 2, top, middle + width / 2, top + height


# -- pure: whose face it is


def same_faces(boxes: Sequence[Sequence[Box]], overlap: float) -> list[dict[int, int]]:
    """Faces of one moment, each as crop -> its number there; a crop shows a face once.

    Args:
        boxes: of every crop's faces, in the frame; the surest face of a crop first.
        overlap: share of the smaller box that two boxes of one face have in common.
    """
    faces: list[dict[int, int]] = []
    for crop, found in enumerate(boxes):
        for number, box in enumerate(found):
            shares = [0.0 if crop in face else _most_shared(box, face, boxes) for face in faces]
            best = max(range(len(faces)), key=shares.__getitem__, default=None)
            if best is not None and shares[best] >= overlap:
                faces[best][crop] = number
            else:
                faces.append({crop: number})
    return faces


def _most_shared(box: Box, face: dict[int, int], boxes: Sequence[Sequence[Box]]) -> float:
    """Share of the smaller box that a box and one of a face have in common, at most."""
    known = [boxes[crop][number] for crop, number in face.items()]
    return max(intersection(box, one) / max(min(area(box), area(one)), 1e-12) for one in known)


def assign(crops: Sequence[Box], boxes: Sequence[Sequence[Box]], settings: FaceMatchSettings) -> list[tuple]:
    """Give every face of one moment to one crop at most, and every crop one face at most.

    Args:
        crops: boxes of the subjects in the frame.
        boxes: of the faces found in each crop, in the frame; the surest first.
        settings: with `min_face_fit` and `same_face_overlap`.

    Returns:
        of each crop (number of its face or None, generalised IoU of that face or else of the best one).
    """
    faces = same_faces(boxes, settings.same_face_overlap)
    fits = np.full((len(crops), len(faces)), -1.0)
    for column, face in enumerate(faces):
        for crop, number in face.items():
            fits[crop, column] = generalised_iou(boxes[crop][number], head_of(crops[crop], boxes[crop][number]))
    # What does not fit is worth nothing, as no face at all: a face goes where it fits best, not where it helps a count.
    worth = np.where(fits >= settings.min_face_fit, fits + 1 + 1e-9, 0.0)
    given = {row: column for row, column in zip(*linear_sum_assignment(worth, maximize=True)) if worth[row, column]}
    return [
        (faces[given[crop]][crop], float(fits[crop, given[crop]]))
        if crop in given
        else (None, float(fits[crop].max(initial=-1.0)))
        for crop in range(len(crops))
    ]


def match(rows: Sequence[Row], settings: FaceMatchSettings) -> list[tuple[int | None, str | None, float | None]]:
    """(number of the face, reason of rejection, score) of each crop of one moment."""
    sure = [[i for i, one in enumerate(row["found"]) if one["confidence"] >= settings.min_face_confidence]
            for row in rows]  # fmt: skip
    boxes = [[in_frame(row["found"][i]["box"], row["crop_box"]) for i in known] for row, known in zip(rows, sure)]
    given = assign([row["crop_box"] for row in rows], boxes, settings)
    return [_judged(row, known, *one, settings) for row, known, one in zip(rows, sure, given, strict=True)]


def _judged(row: Row, sure: list[int], place: int | None, fit: float, settings: FaceMatchSettings) -> tuple:
    if not sure:
        return None, "unsure face", max(one["confidence"] for one in row["found"])
    if place is None:
        return None, "face out of place" if fit < settings.min_face_fit else "face of another subject", fit
    face = row["found"][sure[place]]
    if face["pixels"] < settings.min_face_pixels:
        return sure[place], "small face", face["pixels"]
    if face["sharpness"] < settings.min_face_sharpness:
        return sure[place], "blurred face", face["sharpness"]
    return sure[place], None, None


def match_all(tables: Mapping[str, pa.Table], settings: FaceMatchSettings) -> list[Row]:
    """A row for every crop with faces; vectors are views of the table, for there may be millions."""
    table = tables["face_detections"]
    vectors = table["vectors"]
    rows = table.drop_columns(["vectors"]).to_pylist()
    moments: dict[tuple, list[int]] = defaultdict(list)
    for i in sorted(range(len(rows)), key=lambda i: rows[i]["crop_id"]):
        moments[rows[i]["clip_id"], rows[i]["time"]].append(i)
    made = []
    for members in moments.values():
        for i, (number, reason, score) in zip(members, match([rows[i] for i in members], settings), strict=True):
            row = {"crop_id": rows[i]["crop_id"]}
            if number is not None:
                face = rows[i]["found"][number]
                row |= {"box": face["box"], "confidence": face["confidence"]}
                row["face"] = vectors[i].values[number].values.to_numpy()
            made.append(verdict(row, reason, score))
    return made


# -- the stages


def sharpness(image: np.ndarray, box: Box) -> float:
    """Variance of the Laplacian of a face (x0, y0, x1, y1 in pixels) at 112 x 112 pixels."""
    x0, y0, x1, y1 = (round(value) for value in box)
    face = image[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]
    if not face.size:
        return 0.0
    grey = cv2.resize(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY), (_SHARP_SIDE, _SHARP_SIDE), interpolation=cv2.INTER_AREA)
    return float(cv2.Laplacian(grey, cv2.CV_64F).var())


def describe(face: Face, image: np.ndarray, row: Row) -> Row:
    """A face as `FOUND`; `row` is the crop's."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = face.box
    box = (x0 / width, y0 / height, x1 / width, y1 / height)
    pixels = min((box[2] - box[0]) * row["width"], (box[3] - box[1]) * row["height"])
    return {"box": box, "confidence": face.confidence, "pixels": pixels, "sharpness": sharpness(image, face.box)}


def open_detection(settings: FaceSettings) -> Callable[[Row], list[Row]]:
    """The function of a crop's row.

    Raises:
        UserError: the backend is unknown, or its models cannot be loaded.
    """
    settings.check()
    cv2.setNumThreads(1)
    model = None if settings.face_backend == "none" else open_face_model(settings)

    def detect(row: Row) -> list[Row]:
        if model is None:
            raise Rejection("no face backend")
        if row["category"] not in settings.face_categories:
            raise Rejection("no category with faces", None, row["category"])
        try:
            image = open_image(row["image"])
        except ValueError as error:
            raise Rejection("unreadable", None, str(error)) from None
        faces = [face for face in model(image) if face.box[0] < face.box[2] and face.box[1] < face.box[3]]
        if not faces:
            raise Rejection("no face")
        known = {"crop_id": row["crop_id"], "clip_id": row["clip_id"], "time": row["time"], "crop_box": row["box"]}
        found = [describe(face, image, row) for face in faces]
        return [known | {"found": found, "vectors": [face.vector for face in faces]}]

    return detect


def open_matching(settings: FaceMatchSettings) -> Callable[[Mapping[str, pa.Table]], list[Row]]:
    """The function of the table `face_detections`."""
    settings.check()
    return lambda tables: match_all(tables, settings)


def stages(detection: FaceSettings, matching: FaceMatchSettings) -> list[Stage]:
    """`face_detections` of `crops`, and `faces` of these."""
    crop = ("crop_id", "clip_id", "category", "time", "box", "width", "height", "image")
    models = (detection.face_detector_path, detection.face_recognizer_path)
    files = tuple(Path(path) for path in models if path) if detection.face_backend == "insightface" else ()
    return [
        Stage("face_detections", DETECTIONS, {"crops": crop}, detection, open_detection, files=files),
        Stage("faces", fields_of("faces"), {"face_detections": tuple(field.name for field in DETECTIONS)},
              matching, open_matching, whole=True),
    ]  # fmt: skip
