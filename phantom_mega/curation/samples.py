"""Stage `samples`: which clips become training samples, with which references, in which split.

Train and validation are split by source video: all that is cut from a video, clips and references alike, is on one
side. A pair over the border is given up.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from phantom_mega.curation.engine.stage import Row, Stage, verdict
from phantom_mega.data.hashing import draw_uniform, hash_keys
from phantom_mega.data.schema import MAX_REFERENCES, PAIR_KINDS
from phantom_mega.errors import UserError

SPLITS = ("train", "validation")
CHOICES = ("draw", "most_similar")
SOURCE_TYPE = pa.struct(
    [
        ("phrase", pa.string()),
        ("category", pa.string()),
        ("kind", pa.string()),
        ("video_id", pa.string()),
        ("frame", pa.int64()),
        ("box", pa.list_(pa.float64())),
    ]
)
COLUMNS = (
    pa.field("key", pa.string()),
    pa.field("clip_id", pa.string()),
    pa.field("video_id", pa.string()),
    pa.field("split", pa.string()),
    pa.field("path", pa.string()),
    pa.field("start", pa.float64()),
    pa.field("end", pa.float64()),
    pa.field("fps", pa.float64()),
    pa.field("caption", pa.string()),
    pa.field("references", pa.list_(pa.string())),
    pa.field("sources", pa.list_(SOURCE_TYPE)),
)
INPUTS = {
    "selected": ("clip_id",),
    "clips": ("clip_id", "video_id", "path", "start", "end", "fps", "width", "height"),
    "captions": ("clip_id", "caption"),
    "subjects": ("clip_id", "subjects"),
    "crops": ("crop_id", "clip_id", "video_id", "time", "box"),
    "pairs": ("pair_id", "clip_id", "subject", "crop_id", "kind", "similarity"),
}


@dataclass
class SampleSettings:
    """What becomes a training sample."""

    max_references: int = MAX_REFERENCES
    """References of a sample at most, one of each subject (paper 3.1: up to 4)."""
    reference_choice: str = "draw"
    """Which of a subject's cross pairs is taken: `draw` (any, by a hash), or `most_similar`, which prefers references
    that come close to the clip's own picture, and so to copying it."""
    keep_without_reference: bool = False
    """Clips without any reference become samples of text to video instead of being rejected."""
    validation_fraction: float = 0.01
    """Of the source videos, by a hash of their name."""
    validation_videos: list[str] = field(default_factory=list)
    """Source videos that are in the validation split in any case: their files' names without ending, or whole ids."""
    seed: int = 0
    """Of these hashes."""

    def check(self) -> None:
        """Raise UserError on a value out of range."""
        if not 0 <= self.max_references <= MAX_REFERENCES:
            raise UserError(f"max_references={self.max_references}; a sample has 0 to {MAX_REFERENCES} references")
        if self.reference_choice not in CHOICES:
            raise UserError(f"reference_choice={self.reference_choice!r}; use {' or '.join(CHOICES)}")
        if not 0 <= self.validation_fraction <= 1:
            raise UserError(f"validation_fraction={self.validation_fraction} is not within 0 and 1")


def sample_key(clip_id: str) -> str:
    """A name of letters, digits, `_` and `-` for any clip: what it is called, and a digest that tells it apart."""
    plain = re.sub(r"[^A-Za-z0-9_]+", "-", clip_id).strip("-")[:80]
    return f"{plain or 'clip'}-{hashlib.sha256(clip_id.encode()).hexdigest()[:16]}"


def split_videos(video_ids: Sequence[str], settings: SampleSettings) -> dict[str, str]:
    """The split of each source video; it depends on nothing but the video's name and the settings."""
    draws = draw_uniform(hash_keys(video_ids), settings.seed, "validation")
    held = draws < settings.validation_fraction
    chosen = set(settings.validation_videos)
    named = [bool({video, video.rpartition("-")[0]} & chosen) for video in video_ids]
    return {video: SPLITS[bool(out or by_name)] for video, out, by_name in zip(video_ids, held, named, strict=True)}


def best_pairs(pairs: Iterable[Row], most: int, seed: int | None = None) -> list[Row]:
    """The best pair of each subject, at most `most`, in the order of the subjects; no reference twice.

    A cross pair is better than any in-pair, then the more similar one is.

    Args:
        pairs: of a clip.
        most: pairs.
        seed: cross pairs are as good as each other, and drawn by it; None: the more similar one is better.
    """
    pairs = list(pairs)
    draws = draw_uniform(hash_keys(pair["pair_id"] for pair in pairs), seed, "reference") if seed is not None else ()
    drawn = {pair["pair_id"]: draw for pair, draw in zip(pairs, draws)}

    def rank(pair: Row) -> tuple:
        crossing = pair["kind"] == PAIR_KINDS[0]
        by = drawn.get(pair["pair_id"], 0.0) if crossing else 0.0
        return PAIR_KINDS.index(pair["kind"]), by, -(pair["similarity"] or 0.0), pair["crop_id"]

    best: dict[int, Row] = {}
    used: set[str] = set()
    for pair in sorted(pairs, key=rank):
        if pair["subject"] not in best and pair["crop_id"] not in used and len(best) < most:
            best[pair["subject"]] = pair
            used.add(pair["crop_id"])
    return [best[subject] for subject in sorted(best)]


def frame_number(time: float, fps: float) -> int:
    """The number of the frame that is shown at a time, counted from 0 at the video's average rate.

    Args:
        time: seconds from the video's start; a frame's own time may be rounded down by a tenth of a frame.
        fps: frames per second.
    """
    return max(0, math.floor(time * fps + 0.1))


def source_of(pair: Row, subject: Row, crop: Row, clip: Row) -> Row:
    """Where a reference comes from and what it shows (`SOURCE_TYPE`), with its box in the frame's pixels.

    Args:
        pair: of the sample's clip and the crop.
        subject: of the sample's clip.
        crop: the reference.
        clip: that the crop was cut from.
    """
    x0, y0, x1, y1 = crop["box"]
    return {
        "phrase": subject["phrase"],
        "category": subject["category"],
        "kind": pair["kind"],
        "video_id": crop["video_id"],
        "frame": frame_number(crop["time"], clip["fps"]),
        "box": [x0 * clip["width"], y0 * clip["height"], x1 * clip["width"], y1 * clip["height"]],
    }


def make_samples(tables: Mapping[str, pa.Table], settings: SampleSettings) -> list[Row]:
    """A row for every clip that is selected and has a caption.

    Args:
        tables: of `INPUTS`, accepted rows.
        settings: of the stage.
    """
    clips = {row["clip_id"]: row for row in tables["clips"].to_pylist()}
    captions = dict(zip(*(tables["captions"][name].to_pylist() for name in ("clip_id", "caption")), strict=True))
    subjects = dict(zip(*(tables["subjects"][name].to_pylist() for name in ("clip_id", "subjects")), strict=True))
    used = pc.is_in(tables["crops"]["crop_id"], value_set=tables["pairs"]["crop_id"].combine_chunks())
    crops = {row["crop_id"]: row for row in tables["crops"].filter(used).to_pylist()}
    pairs: dict[str, list[Row]] = defaultdict(list)
    for pair in tables["pairs"].to_pylist():
        known = crops.get(pair["crop_id"], {}).get("clip_id") in clips
        if known and 0 <= pair["subject"] < len(subjects.get(pair["clip_id"]) or ()):
            pairs[pair["clip_id"]].append(pair)
    videos = {clip["video_id"] for clip in clips.values()} | {crop["video_id"] for crop in crops.values()}
    split = split_videos(sorted(videos), settings)
    drawn_by = settings.seed if settings.reference_choice == "draw" else None
    rows = []
    for clip_id in sorted(tables["selected"]["clip_id"].to_pylist()):
        clip = clips.get(clip_id)
        if clip is None or not captions.get(clip_id):
            continue
        side = split[clip["video_id"]]
        there = [pair for pair in pairs[clip_id] if split[crops[pair["crop_id"]]["video_id"]] == side]
        chosen = best_pairs(there, settings.max_references, drawn_by)
        sources = [
            source_of(pair, subjects[clip_id][pair["subject"]], crop, clips[crop["clip_id"]])
            for pair, crop in ((pair, crops[pair["crop_id"]]) for pair in chosen)
        ]
        row = {name: clip[name] for name in ("clip_id", "video_id", "path", "start", "end", "fps")}
        row |= {"key": sample_key(clip_id), "split": side, "caption": captions[clip_id]}
        row |= {"references": [pair["crop_id"] for pair in chosen], "sources": sources}
        reason = None
        if not chosen and not settings.keep_without_reference:
            reason = "references in the other split" if pairs[clip_id] else "no reference"
        rows.append(verdict(row, reason))
    return rows


def open_samples(settings: SampleSettings) -> Callable[[Mapping[str, pa.Table]], list[Row]]:
    """The function of all tables."""
    settings.check()
    return lambda tables: make_samples(tables, settings)


def stage(settings: SampleSettings) -> Stage:
    """Stage `samples`."""
    return Stage("samples", COLUMNS, INPUTS, settings, open_samples, whole=True)
