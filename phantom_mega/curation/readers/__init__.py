"""Public data sets to the tables that `samples` and `write` read, given the user's own download of their videos.

A reader lists clips (stage `annotations`, light rows) and reads an annotation; what follows is the same for all: one
stage for each table. What is missing, damaged or wrong becomes a rejected row and stops nothing else.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from phantom_mega.curation.columns import fields_of
from phantom_mega.curation.cut import image_of, mask_of, pixels_of
from phantom_mega.curation.engine.stage import Rejection, Row, Stage, verdict
from phantom_mega.curation.video import EXTENSIONS, VideoError, frames_at, probe, to_rgb
from phantom_mega.errors import UserError

MISSING, UNREADABLE, WRONG_FIELD = "video missing", "video unreadable", "wrong field"
OUT_OF_RANGE, NO_CAPTION = "box out of range", "no caption"
ONLY_REFERENCE, PART = "reference only", "part cut off"


@dataclass
class CropSpec:
    """A reference that an annotation names.

    Attributes:
        crop_id, clip_id, video_id, path: its name, and what it is cut from.
        subject, phrase, category: what it shows.
        box: x0, y0, x1, y1 in pixels.
        size: (width, height) of the picture that the box is in; one of them may be infinite: the longer side fits.
        fraction: of the clip's frames, at which it is cut; or
        frame: number of the frame.
        mask: from (height, width) of a frame to bool [height, width], or None.
        problem: what is wrong with the annotation.
    """

    crop_id: str
    clip_id: str
    video_id: str
    path: str | None
    subject: int
    phrase: str
    category: str
    box: list[float] = field(default_factory=list)
    size: Callable[[int, int], tuple[float, float]] | None = None
    fraction: float | None = None
    frame: int | None = None
    mask: Callable[[tuple[int, int]], np.ndarray] | None = None
    problem: str | None = None


@dataclass
class Annotation:
    """What a data set says about a clip.

    Attributes:
        caption: "" if the clip serves as a source of references alone.
        frames: (first, stop) of the video; stop may be None: to its end.
        subjects: (phrase, category) of each.
        crops: references that are cut from this clip, or for it.
        pairs: (subject, crop_id, kind, similarity).
        part: x0, y0, x1, y1 in pixels of what the clip shows of its frames; None for all.
    """

    caption: str
    frames: tuple[int, int | None] = (0, None)
    subjects: list[tuple[str, str]] = field(default_factory=list)
    crops: list[CropSpec] = field(default_factory=list)
    pairs: list[tuple[int, str, str, float]] = field(default_factory=list)
    part: list[float] | None = None


def find_videos(folder: str | Path) -> dict[str, str]:
    """Path of every video below a folder, by its name without ending; the first in order where a name occurs twice.

    Raises:
        UserError: there is no video.
    """
    root, found = Path(folder), {}
    paths = [Path(at, name) for at, _, names in os.walk(root, followlinks=True) for name in names]
    for path in sorted(path for path in paths if path.suffix.lower() in EXTENSIONS):
        found.setdefault(path.stem, str(path.absolute()))
    if not found:
        raise UserError(f"{root} holds no video ({', '.join(EXTENSIONS)}); download the data set's videos into it")
    return found


def annotation_row(clip_id: str, video_id: str, path: str | None, data: str) -> Row:
    """A row of `annotations`; rejected where the video is missing. The file's size stands for what is in it."""
    row = {"clip_id": clip_id, "video_id": video_id, "path": path or "", "data": data}
    try:
        return row | {"bytes": os.stat(path or "").st_size}
    except OSError:
        return verdict(row, MISSING, None, f"no video is called {clip_id}")


def number(value: Any, name: str) -> float:
    """A finite number; annotations also hold them as text.

    Raises:
        Rejection: it is none.
    """
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if isinstance(value, bool) or not math.isfinite(found):
        raise Rejection(WRONG_FIELD, None, f"{name} is {str(value)[:60]!r}, not a number")
    return found


def get(data: Any, name: str, kind: type) -> Any:
    """A field of an annotation.

    Raises:
        Rejection: it is missing, or of another kind.
    """
    if not isinstance(data, Mapping) or not isinstance(data.get(name), kind):
        found = type(data.get(name)).__name__ if isinstance(data, Mapping) and name in data else "missing"
        raise Rejection(WRONG_FIELD, None, f"{name} is {found}, not {kind.__name__}")
    return data[name]


def four_numbers(box: Any) -> list[float]:
    """x0, y0, x1, y1, out of any number of lists around them.

    Raises:
        Rejection: it is no box.
    """
    while isinstance(box, list) and box and isinstance(box[0], list):
        box = box[0]
    if not isinstance(box, list) or len(box) != 4:
        raise Rejection(WRONG_FIELD, None, f"the box is {str(box)[:60]}, not four numbers")
    return [number(side, "a side of the box") for side in box]


def fractions_of(box: list[float], size: tuple[float, float], slack: float = 0.02) -> list[float]:
    """A box as fractions of its picture; what is outside by less than `slack` of a side is cut off.

    Raises:
        Rejection: it is empty, or lies further outside.
    """
    found = [side / size[i % 2] for i, side in enumerate(box)]
    if min(found) < -slack or max(found) > 1 + slack:
        raise Rejection(OUT_OF_RANGE, None, f"box {box} of a picture of {size[0]:g}x{size[1]:g}")
    x0, y0, x1, y1 = (min(1.0, max(0.0, side)) for side in found)
    if not (x0 < x1 and y0 < y1):
        raise Rejection(OUT_OF_RANGE, None, f"box {box} is empty")
    return [x0, y0, x1, y1]


def cut_crop(spec: CropSpec, info) -> Row:
    """The row of a reference, with its picture and mask.

    Args:
        spec: what the annotation says.
        info: of the video it is cut from (`probe`).

    Raises:
        Rejection: the box is out of range, or the mask is none.
        VideoError: the video cannot be read there.
    """
    if spec.problem:
        raise Rejection(WRONG_FIELD, None, spec.problem)
    size = spec.size(info.width, info.height) if spec.size else (info.width, info.height)
    box = fractions_of(spec.box, size)
    last = max(0, info.frames - 1)
    at = int(info.frames * spec.fraction) if spec.frame is None else spec.frame
    if not 0 <= at <= last + 1:
        raise Rejection(WRONG_FIELD, None, f"frame {at} of a video of {info.frames}")
    time = min(at, last) / info.fps
    frame = to_rgb(frames_at(spec.path, [time + 0.25 / info.fps])[0])
    x0, y0, x1, y1 = pixels_of(box, frame.shape[1], frame.shape[0])
    row = {"time": time, "box": box, "width": x1 - x0, "height": y1 - y0}
    row["image"] = image_of(Image.fromarray(frame[y0:y1, x0:x1]))
    if spec.mask is not None:
        inside = spec.mask(frame.shape[:2])[y0:y1, x0:x1]
        if not inside.any():
            raise Rejection(WRONG_FIELD, None, "the mask is empty within its box")
        row["mask"] = mask_of(inside)
    return row


# -- stages

Parse = Callable[[Row], Annotation]


def _clips(row: Row, annotation: Annotation) -> list[Row]:
    try:
        info = probe(row["path"])
    except VideoError as error:
        raise Rejection(UNREADABLE, None, f"{row['path']} {error}") from None
    first, stop = annotation.frames
    stop = info.frames if stop is None else min(stop, info.frames)
    if not 0 <= first < stop or not info.fps:
        raise Rejection(WRONG_FIELD, None, f"frames {first} to {stop} of a video of {info.frames} at {info.fps:g}")
    known = {name: row[name] for name in ("clip_id", "video_id", "path")}
    size = {"fps": info.fps, "width": info.width, "height": info.height}
    return [known | {"start": first / info.fps, "end": stop / info.fps} | size]


def _captions(row: Row, annotation: Annotation) -> list[Row]:
    if not annotation.caption.strip():
        raise Rejection(NO_CAPTION)
    return [{"clip_id": row["clip_id"], "caption": annotation.caption.strip(), "scene": "", "behaviour": ""}]


def _subjects(row: Row, annotation: Annotation) -> list[Row]:
    known = {"appearance": "", "identity": None}
    found = [{"phrase": phrase, "category": kind} | known for phrase, kind in annotation.subjects]
    return [{"clip_id": row["clip_id"], "subjects": found}]


def _crops(row: Row, annotation: Annotation) -> list[Row]:
    infos: dict[str, Any] = {}
    rows = []
    for spec in annotation.crops:
        names = ("crop_id", "clip_id", "video_id", "path", "subject", "phrase", "category")
        known = {name: getattr(spec, name) for name in names}
        try:
            if spec.path is None:
                raise Rejection(MISSING, None, f"no video is called {spec.clip_id}")
            if spec.path not in infos:
                infos[spec.path] = probe(spec.path)
            rows.append(known | cut_crop(spec, infos[spec.path]))
        except Rejection as rejection:
            rows.append(verdict(known, rejection.reason, rejection.score, rejection.detail))
        except VideoError as error:
            rows.append(verdict(known, UNREADABLE, None, f"{spec.path} {error}"))
    return rows


def _pairs(row: Row, annotation: Annotation) -> list[Row]:
    known = {"clip_id": row["clip_id"]}
    names = ("subject", "crop_id", "kind", "similarity")
    pairs = (dict(zip(names, pair, strict=True)) for pair in annotation.pairs)
    return [known | {"pair_id": f"{row['clip_id']}:{pair['subject']}:{pair['crop_id']}"} | pair for pair in pairs]


def _selected(row: Row, annotation: Annotation) -> list[Row]:
    if not annotation.caption.strip():
        raise Rejection(ONLY_REFERENCE)
    x0, y0, x1, y1 = annotation.part or (0, 0, row["width"], row["height"])
    if x0 > 0 or y0 > 0 or x1 < row["width"] or y1 < row["height"]:
        raise Rejection(PART, None, f"{annotation.part} of {row['width']}x{row['height']}")
    return [{"clip_id": row["clip_id"]}]


TABLES = {
    "clips": _clips, "captions": _captions, "subjects": _subjects, "crops": _crops, "pairs": _pairs,
    "selected": _selected,
}  # fmt: skip


@dataclass
class Opener:
    """Opens the stage of one table: the annotation is read, then made into rows of the table."""

    table: str
    parser: Callable[[Any], Parse]

    def __call__(self, settings: Any) -> Callable[[Row], list[Row]]:
        """The function of a row of `annotations`."""
        parse, make = self.parser(settings), TABLES[self.table]
        return lambda row: make(row, parse(row))


def stages(settings: Any, list_clips: Callable[[Any], Iterable[Row]], parser: Callable[[Any], Parse]) -> list[Stage]:
    """All stages of a reader, before `samples`.

    Args:
        settings: of the reader.
        list_clips: rows of `annotations` from the settings; module-level.
        parser: from the settings to the function that reads an annotation; module-level. It may raise `Rejection`.
    """

    made = [Stage("annotations", fields_of("annotations"), {}, settings, None, source=list_clips)]
    for name in TABLES:
        inputs = {"annotations": ("clip_id", "video_id", "path", "bytes", "data")}
        if name == "selected":
            inputs["clips"] = ("clip_id", "width", "height")
        made.append(Stage(name, fields_of(name), inputs, settings, Opener(name, parser)))
    return made


def unique(rows: Iterable[Row]) -> Iterator[Row]:
    """Rows; an accepted one whose clip was accepted before is rejected."""
    seen = set()
    for row in rows:
        if row.get("accepted", True):
            if row["clip_id"] in seen:
                row = verdict(row, "listed twice")
            seen.add(row["clip_id"])
        yield row
