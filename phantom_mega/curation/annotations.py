"""Annotations that exist already: captions, subjects and boxes of moments of videos, as JSON Lines.

A line is

    {"video": "bbb.mp4", "time": 63.2, "caption": "...", "scene": "...", "behaviour": "...", "subjects": [
      {"phrase": "a fat grey rabbit", "category": "animal", "appearance": "...", "identity": "Bunny",
       "boxes": [{"time": 63.2, "box": [x0, y0, x1, y1]}]}]}

`video` is the end of a path; `time` lies in the clip that the line is about, in seconds; boxes are fractions of the
picture. All but `video` and `time` may be left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from phantom_mega.data.schema import CATEGORIES
from phantom_mega.errors import UserError

MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class Box:
    """Where a subject is at a moment: seconds from the video's start; x0, y0, x1, y1 as fractions of the picture."""

    time: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Subject:
    """A subject of a clip.

    Attributes:
        phrase: what the caption calls it.
        category: one of `CATEGORIES`, or None: by its words.
        appearance: what it looks like.
        boxes: where it is.
        identity: a label of who or what it is, the same in all clips that show it; None if nobody said.
    """

    phrase: str
    category: str | None = None
    appearance: str = ""
    boxes: tuple[Box, ...] = ()
    identity: str | None = None


@dataclass(frozen=True)
class Annotation:
    """A line of the file."""

    video: str
    time: float
    caption: str = ""
    scene: str = ""
    behaviour: str = ""
    subjects: tuple[Subject, ...] = field(default_factory=tuple)


class Annotations:
    """All lines of a file, found by video and time.

    Args:
        path: of the file.

    Raises:
        UserError: it cannot be read, or a line is wrong; names the line and what is wrong with it.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._by_name: dict[str, list[Annotation]] = {}
        for annotation in read(self.path):
            self._by_name.setdefault(PurePath(annotation.video).name, []).append(annotation)
        for found in self._by_name.values():
            found.sort(key=lambda one: one.time)

    def find(self, video: str, start: float, end: float) -> Annotation | None:
        """The annotation of a clip: the first one of this video with `start` <= time < `end`."""
        where = PurePath(video)
        for one in self._by_name.get(where.name, []):
            parts = PurePath(one.video).parts
            if start <= one.time < end and where.parts[-len(parts) :] == parts:
                return one
        return None


def read(path: Path) -> Iterator[Annotation]:
    """Annotations of a file, in its order.

    Raises:
        UserError: see `Annotations`.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} is larger than {MAX_BYTES >> 30} GiB; split it")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"annotations {path} cannot be read ({error})") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield _annotation(json.loads(line))
        except (ValueError, RecursionError, OverflowError) as error:
            raise UserError(f"{path}, line {number}: {error}") from None


def _annotation(data: object) -> Annotation:
    if not isinstance(data, dict):
        raise ValueError(f"a line must hold an object, not {type(data).__name__}")
    video = _text(data, "video")
    if not video:
        raise ValueError("`video` is missing: the end of the video's path")
    subjects = data.get("subjects", [])
    if not isinstance(subjects, list):
        raise ValueError("`subjects` must be a list")
    texts = {name: _text(data, name) for name in ("caption", "scene", "behaviour")}
    return Annotation(video, _number(data, "time"), **texts, subjects=tuple(map(_subject, subjects)))


def _subject(data: object) -> Subject:
    if not isinstance(data, dict) or not _text(data, "phrase"):
        raise ValueError('a subject must be an object with a "phrase"')
    category, identity = (_text(data, name) or None for name in ("category", "identity"))
    if category is not None and category not in CATEGORIES:
        raise ValueError(f"category {category!r} is unknown; use one of {', '.join(CATEGORIES)}")
    boxes = data.get("boxes", [])
    if not isinstance(boxes, list):
        raise ValueError("`boxes` must be a list")
    return Subject(_text(data, "phrase"), category, _text(data, "appearance"), tuple(map(_box, boxes)), identity)


def _box(data: object) -> Box:
    box = data.get("box") if isinstance(data, dict) else None
    numbers = isinstance(box, list) and len(box) == 4 and all(type(side) in (int, float) for side in box)
    if not numbers or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
        raise ValueError(f"box {str(box)[:80]} must be x0, y0, x1, y1 with 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1")
    return Box(_number(data, "time"), tuple(float(side) for side in box))


def _text(data: dict, name: str) -> str:
    value = data.get(name, "")
    if not isinstance(value, str):
        raise ValueError(f"`{name}` must be a text, not {type(value).__name__}")
    return " ".join(value.split())


def _number(data: dict, name: str) -> float:
    value = data.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"`{name}` is {value!r}; it must be seconds from the video's start")
    return float(value)
