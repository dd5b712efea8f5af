"""Stage `selected`: thresholds on what was measured, and one clip of those that show the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import faiss
import numpy as np
import pyarrow as pa

from phantom_mega.curation.engine.stage import Row, Stage, verdict
from phantom_mega.curation.measures import HASH_BITS


@dataclass
class SelectionSettings:
    """Which clips go on (paper, supplement 4). Every rejected clip is kept with the reason and what was measured."""

    max_black: float = 0.2
    """Share of black frames at most."""
    min_contrast: float = 8.0
    """Standard deviation of brightness at least: no blank screens."""
    max_letterbox: float = 0.05
    """Share of the picture under bars at most."""
    min_sharpness: float = 5.0
    """Variance of the Laplacian at least."""
    min_motion: float = 0.005
    """Heights of the picture per second at least, of its fastest tenth: no stills."""
    max_motion: float = 4.0
    """Heights of the picture per second at most, of its fastest tenth: no flicker, no shaking."""
    max_text_area: float = 0.03
    """Share of the picture under writing at most."""
    min_aesthetic: float = 4.0
    """Aesthetic score at least, where one was measured."""
    duplicate_bits: int = 4
    """Bits of 64 by which perceptual hashes of duplicates differ at most, on average of three frames; -1 keeps all."""


# (reason, column, setting, whether the setting is the least value)
RULES = (
    ("black", "black", "max_black", False),
    ("blank", "contrast", "min_contrast", True),
    ("letterbox", "letterbox", "max_letterbox", False),
    ("blurred", "sharpness", "min_sharpness", True),
    ("static", "motion", "min_motion", True),
    ("shaking", "motion", "max_motion", False),
    ("writing", "text_area", "max_text_area", False),
    ("ugly", "aesthetic", "min_aesthetic", True),
)


def rejection(row: Row, settings: SelectionSettings) -> tuple[str | None, float | None]:
    """(reason, what was measured) of the first rule that a clip breaks."""
    for reason, column, setting, least in RULES:
        value, limit = row[column], getattr(settings, setting)
        if value is not None and (value < limit if least else value > limit):
            return reason, value
    return None, None


def duplicates(hashes: np.ndarray, most: int) -> dict[int, int]:
    """Clips that show the same as an earlier one: number of the later -> number of the first.

    Args:
        hashes: uint8 [clips, 24], three hashes each.
        most: bits of 64 by which two differ at most, on average of the three.
    """
    if len(hashes) < 2 or most < 0:
        return {}
    index = faiss.IndexBinaryFlat(8 * hashes.shape[1])
    index.add(hashes)
    radius = most * hashes.shape[1] * 8 // HASH_BITS + 1  # faiss finds what is nearer than the radius
    first: dict[int, int] = {}
    for start in range(0, len(hashes), 4096):
        limits, _, near = index.range_search(hashes[start : start + 4096], radius)
        for row in range(len(limits) - 1):
            number = start + row
            earlier = [int(i) for i in near[limits[row] : limits[row + 1]] if i < number and int(i) not in first]
            if earlier:
                first[number] = min(earlier)
    return first


def open_selection(settings: SelectionSettings) -> Callable[[dict[str, pa.Table]], list[Row]]:
    """The function of the table `measures`."""

    def select(tables: dict[str, pa.Table]) -> list[Row]:
        rows = sorted(tables["measures"].to_pylist(), key=lambda row: row["clip_id"])
        found = [verdict({"clip_id": row["clip_id"]}, *rejection(row, settings)) for row in rows]
        good = [i for i, row in enumerate(found) if row["accepted"]]
        hashes = np.frombuffer(b"".join(rows[i]["hashes"] for i in good), np.uint8).reshape(len(good), -1)
        for later, first in duplicates(hashes, settings.duplicate_bits).items():
            known = {"clip_id": found[good[later]]["clip_id"]}
            found[good[later]] = verdict(known, "duplicate", None, found[good[first]]["clip_id"])
        return found

    return select


def stage(settings: SelectionSettings) -> Stage:
    """`selected` of `measures`."""
    columns = ("clip_id", *dict.fromkeys(column for _, column, *_ in RULES), "hashes")
    name = (pa.field("clip_id", pa.string()),)
    return Stage("selected", name, {"measures": columns}, settings, open_selection, whole=True)
