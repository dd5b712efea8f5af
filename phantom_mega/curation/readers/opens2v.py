"""OpenS2V-5M (arXiv 2505.20292; on the Hugging Face hub: BestWishYsh/OpenS2V-5M).

JSON files of `name -> {metadata, word_tags, annotation}`, as the project's demo files and data loader have them:

- `metadata`: `path` of the video file, `face_cut` (else `cut`): first frame and the one after the last, `crop`: x0, x1,
  y0, y1 of the part without watermark, `face_cap_qwen`: the caption (other names: `CAPTIONS`), `resolution`;
- `word_tags`: `background`, `subject`, `object`, `pre_define`: lists of words;
- `annotation`: `ann_frame_data` {`ann_frame_idx`, `annotations`: list of {`class_name`, `bbox`: x0, y0, x1, y1,
  `gme_score`, `aes_score`}, `img_width`, `img_height`}; `mask_annotation`: frame -> number from 1 on -> COCO run
  lengths. Boxes and masks are in the cropped frame.

Cross pairs, a list or `cluster -> list`: {`cur_id`, `aft_id`: `file's name/name`, `cur_class_id`, `aft_class_id`: as in
`mask_annotation`, `text_similarity`, `image_similarity`}. The published files have tens of gigabytes: they are mapped
into memory, and a row keeps where its annotation lies, not what it says.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from phantom_mega.curation.categories import category_of
from phantom_mega.curation.engine.stage import Rejection, Row, Stage, verdict
from phantom_mega.curation.readers import (
    WRONG_FIELD,
    Annotation,
    CropSpec,
    annotation_row,
    find_videos,
    four_numbers,
    get,
    number,
    stages,
    unique,
)
from phantom_mega.curation.readers.rle import decode_mask
from phantom_mega.errors import UserError

CAPTIONS = ("face_cap_qwen", "cap_qwen", "caption", "cap")
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\]]')
_CLUSTER = re.compile(r"_(?:segment|part)")


@dataclass
class OpenS2VSettings:
    """Where OpenS2V-5M lies, and which of its pairs are taken."""

    annotations: list[str] = field(default_factory=list)
    """JSON files; the name of a file without ending is the part's name in cross pairs."""
    cross_pairs: list[str] = field(default_factory=list)
    """JSON files of cross pairs."""
    videos: str = ""
    """Folder of the videos, each named as `metadata.path` says, anywhere below it."""
    min_similarity: float = 0.0
    """Cross pairs whose images are less similar are left out."""
    max_similarity: float = 1.0
    """More similar ones too: they show the same picture again."""
    min_text_similarity: float = 0.0
    """Cross pairs whose words are less similar are left out."""
    take_whole_frames: bool = False
    """Clips with a part cut off (watermarks) are rejected; true takes their whole frames instead."""
    leave_out: list[str] = field(default_factory=lambda: ["background"])
    """Kinds of `word_tags` whose words are no subjects."""


def iterate_objects(path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, first byte, byte after the last) of every object in a JSON object of objects, of any size.

    Raises:
        UserError: the file cannot be read, or is something else.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            depth, name, start = 0, None, 0
            for token in _TOKEN.finditer(data):
                letter = token[0][:1]
                if letter == b'"':
                    name = token[0] if depth == 1 else name
                    continue
                if letter in b"{[":
                    if depth == 0 and letter == b"[":
                        raise UserError(f"{path} holds a list, not an object of annotations")
                    depth += 1
                    start = token.start() if depth == 2 else start
                else:
                    depth -= 1
                    if depth == 1 and name is not None:
                        yield str(json.loads(name)), start, token.end()
            if depth:
                raise UserError(f"{path} ends in the middle of an annotation; download it again")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None


def read_cross_pairs(settings: OpenS2VSettings) -> dict[str, list]:
    """Cross pairs by clip, in both directions: (own number, other clip, its number, similarity of images).

    Raises:
        UserError: a file cannot be read.
    """
    found: dict[str, list] = defaultdict(list)
    for path in settings.cross_pairs:
        try:
            data = json.loads(Path(path).read_bytes())
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read as JSON: {error}") from None
        for group in data.values() if isinstance(data, dict) else [data]:
            for pair in group if isinstance(group, list) else ():
                try:
                    ends = [(get(pair, f"{end}_id", str), str(pair[f"{end}_class_id"])) for end in ("cur", "aft")]
                    similar = number(pair["image_similarity"], "image_similarity")
                    words = number(pair.get("text_similarity", 1), "text_similarity")
                except (KeyError, Rejection):
                    continue
                if words < settings.min_text_similarity or ends[0][0] == ends[1][0]:
                    continue
                if settings.min_similarity <= similar <= settings.max_similarity:
                    (one, own), (other, its) = ends
                    found[one].append((own, other, its, similar))
                    found[other].append((its, one, own, similar))
    return found


def crop_id(clip_id: str, which: str) -> str:
    """Name of the reference that is the annotated subject `which` of a clip."""
    return f"{clip_id}:{which}"


def list_clips(settings: OpenS2VSettings) -> Iterator[Row]:
    """Rows of `annotations`: clips of all files, with where their annotation lies and their cross pairs."""
    videos, pairs = find_videos(settings.videos), read_cross_pairs(settings)

    def rows() -> Iterator[Row]:
        for path in map(Path, settings.annotations):
            with path.open("rb") if path.is_file() else _missing(path) as file:
                for name, start, stop in iterate_objects(path):
                    clip_id = f"{path.stem}/{name}"
                    file.seek(start)
                    text = file.read(stop - start)
                    try:
                        said = get(get(json.loads(text), "metadata", dict), "path", str)
                    except (ValueError, Rejection) as error:
                        yield verdict({"clip_id": clip_id}, WRONG_FIELD, None, str(error))
                        continue
                    data = {"file": str(path), "start": start, "stop": stop, "pairs": pairs.get(clip_id, [])}
                    data["sha256"] = hashlib.sha256(text).hexdigest()  # so that a changed annotation is read again
                    yield annotation_row(
                        clip_id, _CLUSTER.split(name)[0], videos.get(Path(said).stem), json.dumps(data)
                    )

    yield from unique(rows())


def _missing(path: Path):
    raise UserError(f"{path} does not exist")


def open_parser(settings: OpenS2VSettings) -> Callable[[Row], Annotation]:
    """The function that reads an annotation."""

    def parse(row: Row) -> Annotation:
        where = json.loads(row["data"])
        with open(where["file"], "rb") as file:
            file.seek(where["start"])
            data = json.loads(file.read(where["stop"] - where["start"]))
        about = get(data, "metadata", dict)
        caption = next((about[name] for name in CAPTIONS if isinstance(about.get(name), str)), "")
        annotation = get(data, "annotation", dict)
        frame_data = get(annotation, "ann_frame_data", dict)
        part = _part(about, frame_data)
        made = Annotation(caption, _frames(about), part=None if settings.take_whole_frames else part)
        frame = int(number(frame_data.get("ann_frame_idx"), "ann_frame_idx"))
        masks = (annotation.get("mask_annotation") or {}).get(str(frame)) or {}
        tags = data.get("word_tags") or {}
        left_out = {word for kind in settings.leave_out for word in tags.get(kind) or ()}
        subject_of: dict[str, int] = {}
        for i, entry in enumerate(get(frame_data, "annotations", list), 1):
            phrase = entry.get("class_name") if isinstance(entry, dict) else None
            if not isinstance(phrase, str) or phrase in left_out:
                continue
            subject = subject_of[str(i)] = len(made.subjects)
            made.subjects.append((phrase, category_of(phrase)))
            spec = CropSpec(
                crop_id(row["clip_id"], str(i)), row["clip_id"], row["video_id"], row["path"], subject, phrase,
                category_of(phrase), frame=frame,
            )  # fmt: skip
            try:
                box = four_numbers(entry.get("bbox"))
                spec.box = [side + part[j % 2] for j, side in enumerate(box)]
            except Rejection as rejection:
                spec.problem = rejection.detail
            if str(i) in masks:
                spec.mask = _masker(masks[str(i)], part)
            made.crops.append(spec)
            made.pairs.append((subject, spec.crop_id, "in", 1.0))
        for own, other, its, similarity in where["pairs"]:
            if own in subject_of:
                made.pairs.append((subject_of[own], crop_id(other, its), "cross", similarity))
        return made

    return parse


def _frames(about: dict) -> tuple[int, int | None]:
    cut = about.get("face_cut") or about.get("cut")
    if cut is None:
        return 0, None
    if not isinstance(cut, list) or len(cut) != 2:
        raise Rejection(WRONG_FIELD, None, f"cut is {str(cut)[:60]}, not two frames")
    return int(number(cut[0], "cut")), int(number(cut[1], "cut"))


def _masker(rle: Any, part: list[float]) -> Callable[[tuple[int, int]], np.ndarray]:
    """From a frame's (height, width) to the mask in it."""

    def mask(shape: tuple[int, int]) -> np.ndarray:
        try:
            inside = decode_mask(rle)
        except ValueError as error:
            raise Rejection(WRONG_FIELD, None, str(error)) from None
        x, y = int(part[0]), int(part[1])
        height, width = inside.shape
        if y + height > shape[0] or x + width > shape[1] or not part[2:] == [x + width, y + height]:
            raise Rejection(
                WRONG_FIELD, None, f"a mask of {width}x{height} in the part {part} of {shape[1]}x{shape[0]}"
            )
        return np.pad(inside, ((y, shape[0] - y - height), (x, shape[1] - x - width)))

    return mask


def _part(about: dict, frame_data: dict) -> list[float]:
    """x0, y0, x1, y1 in pixels of the frame's part that the clip shows, and that boxes and masks are in."""
    if about.get("crop") is None:
        width, height = (number(frame_data.get(name), name) for name in ("img_width", "img_height"))
        return [0.0, 0.0, width, height]
    x0, x1, y0, y1 = four_numbers(about["crop"])
    if not (0 <= x0 < x1 and 0 <= y0 < y1):
        raise Rejection(WRONG_FIELD, None, f"crop {about['crop']} is empty")
    return [x0, y0, x1, y1]


def reader(settings: OpenS2VSettings) -> list[Stage]:
    """Stages from OpenS2V's files and the user's videos to the tables that `samples` reads."""
    return stages(settings, list_clips, open_parser)
