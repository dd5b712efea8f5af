"""Phantom-Data (arXiv 2506.18851; on the Hugging Face hub: ZhuoweiChen/Phantom-data-Koala36M).

`koala36M_multi_ref_merged_filtered.parquet`, by its README and by public code that reads it:

- `vid` (in some copies `video_id`): `{source video}_{start}_{end}`, the clip, a file of that name;
- `video_caption`;
- `cross_pair`: JSON text (or a struct), phrase -> {`obj_from_tgt_video`: list of boxes in the clip itself,
  `refer_result`: list of groups of boxes in other clips, mostly of the same source video}. A box is {`vid`,
  `frame_idx`: fraction of the clip's frames, also as text; `bbox_loc` (also `bbox`, `box`): x0, y0, x1, y1, flat or in
  one more list; `bbox_cls`; `scores`}.

The README does not say which picture the boxes are in. Public measurements of all 1.3 million boxes find their heights
to fit frames whose longer side is 768 pixels, while 14% of them are wider than such a frame: those are rejected.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

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
from phantom_mega.errors import UserError

_NAMES, _BOXES = ("vid", "video_id"), ("bbox_loc", "bbox", "box")


@dataclass
class PhantomDataSettings:
    """Where Phantom-Data lies."""

    annotations: str = ""
    """`koala36M_multi_ref_*filtered.parquet`."""
    videos: str = ""
    """Folder of the clips, each named `{vid}.mp4` (or another ending), anywhere below it."""
    box_side: int = 768
    """Pixels of the longer side of the pictures that boxes are in; 0: they are in the clip's own pixels."""


def source_video(vid: str) -> str:
    """The video that a clip was cut from: `uuid_12.3_15.0` -> `uuid`; a name of another form is its own source."""
    parts = vid.rsplit("_", 2)
    try:
        float(parts[1]), float(parts[2])
    except (IndexError, ValueError):
        return vid
    return parts[0]


def read_pairs(value: Any) -> dict:
    """`cross_pair` as a dict: JSON text, a struct, or a parquet map.

    Raises:
        Rejection: it is none of these.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise Rejection(WRONG_FIELD, None, f"cross_pair is no JSON ({error})") from None
    if isinstance(value, list) and all(isinstance(one, tuple) and len(one) == 2 for one in value):
        value = dict(value)
    if not isinstance(value, dict):
        raise Rejection(WRONG_FIELD, None, f"cross_pair is {type(value).__name__}, not an object")
    return {phrase: found for phrase, found in value.items() if found is not None}


def _entries(found: Any, name: str) -> list:
    """Boxes of a phrase, out of their groups."""
    groups = (found.get(name) or []) if isinstance(found, dict) else [found]
    groups = groups if isinstance(groups, list) else [groups]
    return list(itertools.chain.from_iterable(group if isinstance(group, list) else [group] for group in groups))


def _rows(path: Path) -> Iterator[Row]:
    try:
        with pq.ParquetFile(path) as file:
            there = file.schema_arrow.names
            name = next((one for one in _NAMES if one in there), None)
            if name is None or "video_caption" not in there or "cross_pair" not in there:
                raise UserError(f"{path} lacks vid, video_caption or cross_pair; it has {', '.join(there)}")
            for batch in file.iter_batches(2000, columns=[name, "video_caption", "cross_pair"]):
                for row in batch.to_pylist():
                    yield {"vid": row[name], "caption": row["video_caption"], "cross_pair": row["cross_pair"]}
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a readable parquet file: {error}") from None


def list_clips(settings: PhantomDataSettings) -> Iterator[Row]:
    """Rows of `annotations`: every clip with a caption, then every other clip that references are cut from."""
    videos, others = find_videos(settings.videos), {}

    def targets() -> Iterator[Row]:
        for i, row in enumerate(_rows(Path(settings.annotations))):
            vid = row["vid"]
            if not isinstance(vid, str) or not vid:
                yield verdict({"clip_id": f"row {i}"}, WRONG_FIELD, None, f"vid is {vid!r}")
                continue
            try:
                pairs = read_pairs(row["cross_pair"])
            except Rejection as rejection:
                yield verdict({"clip_id": vid}, rejection.reason, None, rejection.detail)
                continue
            paths = {}
            for entry in itertools.chain.from_iterable(_entries(found, "refer_result") for found in pairs.values()):
                if isinstance(entry, dict) and isinstance(entry.get("vid"), str):
                    others[entry["vid"]] = paths[entry["vid"]] = videos.get(entry["vid"])
            data = {"caption": row["caption"], "cross_pair": pairs, "paths": paths}
            yield annotation_row(vid, source_video(vid), videos.get(vid), json.dumps(data))

    listed: dict[str, bool] = {}
    for row in unique(targets()):
        listed[row["clip_id"]] = row.get("accepted", True) or listed.get(row["clip_id"], False)
        yield row
    for vid, path in others.items():
        # References are cut from a clip whose own annotation is wrong, too.
        if vid not in listed or (path and not listed[vid]):
            yield annotation_row(vid, source_video(vid), path, "{}")


def open_parser(settings: PhantomDataSettings) -> Callable[[Row], Annotation]:
    """The function that reads an annotation."""

    def size(width: int, height: int) -> tuple[float, float]:
        scale = settings.box_side / max(width, height) if settings.box_side else 1.0
        return width * scale, height * scale

    def crop(entry: Any, name: str, subject: int, phrase: str, row: Row, paths: dict) -> CropSpec:
        spec = CropSpec(name, row["clip_id"], row["video_id"], row["path"], subject, phrase, category_of(phrase))
        try:
            vid = get(entry, "vid", str)
            spec.clip_id, spec.video_id = vid, source_video(vid)
            spec.path = row["path"] if vid == row["clip_id"] else paths.get(vid)
            spec.fraction = number(entry.get("frame_idx"), "frame_idx")
            if not 0 <= spec.fraction <= 1:
                raise Rejection(WRONG_FIELD, None, f"frame_idx is {spec.fraction}, not a fraction")
            spec.box = four_numbers(next((entry[key] for key in _BOXES if key in entry), None))
            spec.size = size
        except Rejection as rejection:
            spec.problem = rejection.detail
        return spec

    def parse(row: Row) -> Annotation:
        data = json.loads(row["data"])
        if not data:
            return Annotation("")
        made = Annotation(get(data, "caption", str))
        for subject, (phrase, found) in enumerate(data["cross_pair"].items()):
            made.subjects.append((phrase, category_of(phrase)))
            for kind, field in (("cross", "refer_result"), ("in", "obj_from_tgt_video")):
                for i, entry in enumerate(_entries(found, field)):
                    name = f"{row['clip_id']}_{subject}_{kind}{i}"
                    made.crops.append(crop(entry, name, subject, phrase, row, data["paths"]))
                    scores = entry.get("scores") if isinstance(entry, dict) else None
                    scores = scores[0] if isinstance(scores, list) and scores else scores
                    score = float(scores) if isinstance(scores, (int, float)) else 0.0
                    same = made.crops[-1].clip_id == row["clip_id"]
                    made.pairs.append((subject, name, "in" if same else "cross", score))
        return made

    return parse


def reader(settings: PhantomDataSettings) -> list[Stage]:
    """Stages from Phantom-Data's table and the user's clips to the tables that `samples` reads."""
    return stages(settings, list_clips, open_parser)
