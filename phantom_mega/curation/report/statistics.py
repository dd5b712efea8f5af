"""Statistics of a data set as the paper's Figure 11 shows them: subjects, categories, durations, sizes, captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from phantom_mega.curation.report.reading import Tables, flat
from phantom_mega.data.index import TripletIndex

RATIOS = {
    "21:9": 64 / 27, "1.85:1": 1.85, "16:9": 16 / 9, "3:2": 3 / 2, "4:3": 4 / 3, "1:1": 1.0, "3:4": 3 / 4,
    "2:3": 2 / 3, "9:16": 9 / 16,
}  # fmt: skip
_SAME_RATIO = 0.02  # relative difference at most


@dataclass
class Statistics:
    """What the figures show; empty where the stage has not run.

    Attributes:
        subjects_per_clip: number of subjects -> clips.
        categories: of subjects -> subjects.
        durations: float [clips], seconds.
        durations_of: which clips these are.
        sizes: (width, height) in pixels -> clips.
        sizes_of: which clips these are.
        references_per_sample: number of references -> samples.
        caption_words: int [captions].
        kinds: (category, `cross` or `in`) -> references of samples.
        boxes_kept: boxes that went on.
        boxes_dropped: reason -> boxes.
    """

    subjects_per_clip: Counter[int] = field(default_factory=Counter)
    categories: Counter[str] = field(default_factory=Counter)
    durations: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    durations_of: str = ""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    sizes_of: str = ""
    references_per_sample: Counter[int] = field(default_factory=Counter)
    caption_words: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)
    boxes_kept: int = 0
    boxes_dropped: Counter[str] = field(default_factory=Counter)

    @property
    def ratios(self) -> Counter[str]:
        """Aspect ratio -> clips."""
        found: Counter[str] = Counter()
        for (width, height), count in self.sizes.items():
            found[ratio_of(width, height)] += count
        return found


def ratio_of(width: int, height: int) -> str:
    """The nearest common aspect ratio within 2 %, or `other`."""
    if width < 1 or height < 1:
        return "other"
    name = min(RATIOS, key=lambda one: abs(np.log(RATIOS[one] * height / width)))
    return name if abs(RATIOS[name] * height / width - 1) <= _SAME_RATIO else "other"


def tally(column: pa.ChunkedArray) -> Counter:
    """Value -> how often; nulls are passed over."""
    counts = pc.drop_null(column).value_counts()
    return Counter({entry["values"]: entry["counts"] for entry in counts.to_pylist()})


def words(captions: pa.ChunkedArray) -> np.ndarray:
    """int [captions], the words of each that is not null."""
    return pc.count_substring_regex(pc.drop_null(captions), r"\S+").to_numpy().astype(np.int32)


def pair_tally(table: pa.Table, first: str, second: str) -> Counter[tuple]:
    """(value of one column, value of another) -> rows."""
    counts = table.group_by([first, second]).aggregate([([], "count_all")])
    return Counter({(row[first], row[second]): row["count_all"] for row in counts.to_pylist()})


def kinds_by_category(sources: pa.ChunkedArray) -> Counter[tuple[str, str]]:
    """(category, kind) -> references.

    Args:
        sources: lists of structs with these fields.
    """
    fields = {name: pc.fill_null(flat(sources, name), "unknown") for name in ("category", "kind")}
    return pair_tally(pa.table(fields), "category", "kind")


def gather(tables: Tables, indexes: Sequence[TripletIndex]) -> Statistics:
    """Statistics of all tables that are there.

    Args:
        tables: of the stages.
        indexes: of the written samples, whose sizes are told rather than those of source clips.
    """
    found = Statistics()
    if tables.has("subjects", "subjects"):
        for part in tables.read("subjects", ["subjects"], True):
            found.subjects_per_clip += tally(pc.list_value_length(part["subjects"]))
            found.categories += tally(flat(part["subjects"], "category"))
    if tables.has("samples", "references", "sources"):
        for part in tables.read("samples", ["references", "sources"], True):
            found.references_per_sample += tally(pc.list_value_length(part["references"]))
            found.kinds += kinds_by_category(part["sources"])
    if tables.has("boxes", "boxes"):
        columns = [name for name in ("boxes", "dropped") if tables.has("boxes", name)]
        for part in tables.read("boxes", columns):
            found.boxes_kept += pc.sum(pc.list_value_length(part["boxes"])).as_py() or 0
            if "dropped" in columns:
                found.boxes_dropped += tally(flat(part["dropped"], "reason"))
    _captions(found, tables)
    _durations(found, tables)
    _sizes(found, tables, indexes)
    return found


def _captions(found: Statistics, tables: Tables) -> None:
    for stage in ("samples", "captions"):
        if tables.has(stage, "caption"):
            counts = [words(part["caption"]) for part in tables.read(stage, ["caption"], True)]
            found.caption_words = np.concatenate(counts)
            if len(found.caption_words):
                return


def _durations(found: Statistics, tables: Tables) -> None:
    for stage, of in (("samples", "those of samples"), ("clips", "all of them")):
        if tables.has(stage, "start", "end"):
            parts = tables.read(stage, ["start", "end"], True)
            spans = [pc.subtract(part["end"], part["start"]).to_numpy().astype(np.float32) for part in parts]
            found.durations, found.durations_of = np.concatenate(spans), of
            found.durations = found.durations[np.isfinite(found.durations)]
            if len(found.durations):
                return


def _sizes(found: Statistics, tables: Tables, indexes: Sequence[TripletIndex]) -> None:
    for index in indexes:
        found.sizes += pair_tally(index.table, "width", "height")
        found.sizes_of = "those of written samples"
    if found.sizes:
        return
    if tables.has("clips", "width", "height"):
        for part in tables.read("clips", ["width", "height"], True):
            found.sizes += pair_tally(part.select(["width", "height"]).drop_null(), "width", "height")
        found.sizes_of = "all of them, as their videos have it"
