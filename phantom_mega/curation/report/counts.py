"""How many rows of each stage went on, why the others did not, and how many hours of video are left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from phantom_mega.curation.engine.part import RETRIED
from phantom_mega.curation.report.reading import Tables, flat, shown

MAX_FAILURES = 20  # that are kept of a stage, for their messages


@dataclass(frozen=True)
class Example:
    """A rejected row: its name, what was measured, what is particular to it."""

    name: str
    score: float | None = None
    detail: str = ""


@dataclass
class StageCounts:
    """What became of a stage's rows.

    Attributes:
        stage: its name.
        accepted: rows.
        reasons: of rejected rows, with counts.
        examples: one of each reason.
        hours: of video that the accepted rows show; None where rows are no pieces of video.
        failures: (reason, row) of the first rows that failed.
    """

    stage: str
    accepted: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, Example] = field(default_factory=dict)
    hours: float | None = None
    failures: list[tuple[str, Example]] = field(default_factory=list)

    @property
    def rejected(self) -> int:
        """Rows."""
        return self.reasons.total()

    @property
    def failed(self) -> int:
        """Rows that bugs, damaged data or endpoints rejected."""
        return sum(self.reasons[reason] for reason in RETRIED)

    def ordered(self) -> list[tuple[str, int]]:
        """(reason, count), the most frequent first."""
        return sorted(self.reasons.items(), key=lambda item: (-item[1], item[0]))

    def add(self, table: pa.Table) -> None:
        """Count the rows of a part.

        Args:
            table: a column that names rows, `accepted`, `reason`, `score`, `detail`.
        """
        self.accepted += pc.sum(table["accepted"]).as_py() or 0
        rejected = table.filter(pc.invert(table["accepted"]))
        reasons = pc.fill_null(rejected["reason"], "no reason given")
        for entry in reasons.value_counts().to_pylist():
            reason = entry["values"]
            self.reasons[reason] += entry["counts"]
            if reason not in self.examples:
                self.examples[reason] = _example(rejected, pc.index(reasons, reason).as_py())
        left = MAX_FAILURES - len(self.failures)
        failed = rejected.filter(pc.is_in(reasons, value_set=pa.array(sorted(RETRIED)))).slice(0, left)
        self.failures += [(failed["reason"][i].as_py(), _example(failed, i)) for i in range(failed.num_rows)]


def _example(table: pa.Table, row: int) -> Example:
    name, score, detail = (table[column][row].as_py() for column in (table.column_names[0], "score", "detail"))
    return Example(shown(name), score, shown(detail or ""))


def count_stages(tables: Tables) -> list[StageCounts]:
    """Of all stages that have run, in their order."""
    found = []
    for stage in tables.there:
        counts = StageCounts(stage)
        for part in tables.read(stage, [tables.keys[stage], "accepted", "reason", "score", "detail"]):
            counts.add(part)
        counts.hours = _hours(tables, stage)
        found.append(counts)
    return found


def _hours(tables: Tables, stage: str) -> float | None:
    """Hours that a stage's accepted rows show: of their own spans, or of the clips that they name."""
    if tables.has(stage, "duration"):
        return sum(pc.sum(part["duration"]).as_py() or 0.0 for part in tables.read(stage, ["duration"], True)) / 3600
    if tables.has(stage, "start", "end"):
        return sum(map(span, tables.read(stage, ["start", "end"], True))) / 3600
    if tables.keys[stage] != "clip_id" or not tables.has("clips", "start", "end"):
        return None
    seconds = 0.0
    for part in range(tables.parts):  # a clip lies in the same part of both
        names = tables.read_part(stage, part, ["clip_id"], True)["clip_id"]
        clips = tables.read_part("clips", part, ["clip_id", "start", "end"], True)
        seconds += span(clips.filter(pc.is_in(clips["clip_id"], value_set=names.combine_chunks())))
    return seconds / 3600


def span(table: pa.Table) -> float:
    """Seconds from `start` to `end`, over all rows."""
    return pc.sum(pc.subtract(table["end"], table["start"])).as_py() or 0.0


@dataclass
class Sums:
    """Totals of a split, or of the input; None is unknown."""

    videos: int | None = None
    hours: float | None = None
    shots: int | None = None
    clips: int | None = None
    samples: int | None = None
    references: int | None = None
    cross: int | None = None


def sum_input(stages: Iterable[StageCounts]) -> Sums:
    """Of what could be read: videos, their hours, shots and clips."""
    known = {counts.stage: counts for counts in stages}
    accepted = {name: known[name].accepted if name in known else None for name in ("videos", "shots", "clips")}
    return Sums(**accepted, hours=known["videos"].hours if "videos" in known else None)


def sum_samples(tables: Tables) -> dict[str, Sums]:
    """Of each split of the table `samples`; nothing where it has not run."""
    columns = ["split", "video_id", "clip_id", "references", "sources"]
    if not tables.has("samples", *columns):
        return {}
    spans = ["start", "end"] if tables.has("samples", "start", "end") else []
    columns = [*columns, *spans]
    found: dict[str, Sums] = {}
    videos: dict[str, set[str]] = {}
    clips: dict[str, list[pa.Array]] = {}
    for part in tables.read("samples", columns, True):
        for split in pc.unique(part["split"]).to_pylist():
            rows = part.filter(pc.equal(part["split"], split))
            sums = found.setdefault(split, Sums(hours=0.0, samples=0, references=0, cross=0))
            sums.samples += rows.num_rows
            sums.references += pc.sum(pc.list_value_length(rows["references"])).as_py() or 0
            sums.cross += pc.sum(pc.equal(flat(rows["sources"], "kind"), "cross")).as_py() or 0
            sums.hours = sums.hours + span(rows) / 3600 if spans else None
            videos.setdefault(split, set()).update(pc.unique(rows["video_id"]).to_pylist())
            clips.setdefault(split, []).append(rows["clip_id"].combine_chunks())
    for split, sums in found.items():
        sums.videos, sums.clips = len(videos[split]), pc.count_distinct(pa.chunked_array(clips[split])).as_py()
        sums.shots = _shots(tables, pa.concat_arrays(clips[split]))
    return found


def _shots(tables: Tables, clips: pa.Array) -> int | None:
    if not tables.has("clips", "shot_id"):
        return None
    shots = []
    for part in tables.read("clips", ["clip_id", "shot_id"], True):
        shots.append(pc.unique(part.filter(pc.is_in(part["clip_id"], value_set=clips))["shot_id"]))
    return pc.count_distinct(pa.chunked_array(shots, pa.string())).as_py()
