"""Candidates for pairs: their similarities, and a few of them to look at, spread over the range of similarity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from phantom_mega.curation.engine.stage import Row
from phantom_mega.curation.report.reading import Tables

_COLUMNS = ("kind", "similarity", "face_similarity", "accepted", "reason")


@dataclass
class Candidates:
    """All rows of the table `pairs`, in its order, as numbers.

    Attributes:
        similarity, face: float [pairs], NaN where unknown.
        accepted: bool [pairs].
        cross: bool [pairs]; the others are from the clip itself.
        reason: int [pairs], number of the reason, -1 for none.
        reasons: their words.
        readable: bool [pairs], whether the reference's image may be read for the grid.
    """

    similarity: np.ndarray
    face: np.ndarray
    accepted: np.ndarray
    cross: np.ndarray
    reason: np.ndarray
    reasons: list[str]
    readable: np.ndarray


def candidates_of(table: pa.Table, readable: np.ndarray | None = None) -> Candidates:
    """Rows of `pairs` as numbers.

    Args:
        table: kind, similarity, face_similarity, accepted, reason.
        readable: bool [pairs]; all by default.
    """
    reason = pc.if_else(table["accepted"], None, pc.fill_null(table["reason"], "no reason given"))
    codes = pa.chunked_array([reason.combine_chunks()], pa.string()).combine_chunks().dictionary_encode()
    kind = pc.fill_null(pc.equal(table["kind"], "in"), False)
    return Candidates(
        *(
            pc.fill_null(table[name], np.nan).to_numpy().astype(np.float64)
            for name in ("similarity", "face_similarity")
        ),
        table["accepted"].to_numpy().astype(bool),
        ~kind.to_numpy().astype(bool),
        pc.fill_null(codes.indices, -1).to_numpy().astype(np.int64),
        codes.dictionary.to_pylist(),
        np.ones(table.num_rows, bool) if readable is None else readable,
    )


def read_candidates(tables: Tables, image_parts: set[int]) -> Candidates | None:
    """All of the table `pairs`; None if it is not there.

    Args:
        tables: of the stages.
        image_parts: parts of the table `crops` whose images may be read.
    """
    if not tables.has("pairs", "crop_id", *_COLUMNS):
        return None
    everywhere, parts, readable = len(image_parts) == tables.parts, [], []
    names = pa.array([], pa.string()) if everywhere else _names(tables, image_parts)
    for part in tables.read("pairs", [*_COLUMNS, *(() if everywhere else ("crop_id",))]):
        if not everywhere:
            readable.append(pc.is_in(part["crop_id"], value_set=names).to_numpy())
        reason = pa.chunked_array([part["reason"].combine_chunks()], pa.string())
        parts.append(part.select(_COLUMNS).set_column(4, "reason", reason))
    return candidates_of(pa.concat_tables(parts), None if everywhere else np.concatenate(readable))


def _names(tables: Tables, parts: set[int]) -> pa.Array:
    """Names of the crops in some parts; crops lie in the parts of their clips, which their own names do not tell."""
    columns = [tables.read_part("crops", part, ["crop_id"], True)["crop_id"] for part in sorted(parts)]
    return pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string()).combine_chunks()


def spread(values: np.ndarray, count: int) -> np.ndarray:
    """Numbers of at most `count` values, as evenly spread from the least to the greatest as they lie; ascending.

    Args:
        values: float [n]; what is not finite is passed over.
        count: at most.
    """
    order = np.argsort(values, kind="stable")
    order = order[np.isfinite(values[order])]
    if len(order) <= count or count < 1:
        return order[: max(count, 0)]
    ordered = values[order]
    place = np.searchsorted(ordered, np.linspace(ordered[0], ordered[-1], count))
    step = np.arange(count)  # no value twice: push equal places up, then down from the end
    place = np.maximum.accumulate(place - step) + step
    return order[np.minimum(place, len(order) - count + step)]


@dataclass
class Chosen:
    """Rows of a grid.

    Attributes:
        rows: numbers of rows of the table `pairs`.
        total: that there were to choose from.
    """

    rows: list[int] = field(default_factory=list)
    total: int = 0

    @property
    def left_out(self) -> int:
        """That are not shown."""
        return self.total - len(self.rows)


def choose_accepted(found: Candidates, count: int) -> Chosen:
    """Accepted cross pairs, the least similar first; pairs from the clip itself only where there are no others."""
    of = found.accepted & found.cross if (found.accepted & found.cross).any() else found.accepted
    return Chosen(_spread_rows(found, of, count), int(of.sum()))


def choose_rejected(found: Candidates, count: int, reasons: int = 8) -> Chosen:
    """Rejected candidates: of each of the most frequent reasons some, the least similar first."""
    rejected = ~found.accepted
    totals = np.bincount(found.reason[rejected], minlength=len(found.reasons))
    ordered = [int(i) for i in np.argsort(-totals, kind="stable") if totals[i]][:reasons]
    chosen = Chosen([], int(rejected.sum()))
    for place, reason in enumerate(ordered):
        share = -(-(count - len(chosen.rows)) // (len(ordered) - place))
        chosen.rows += _spread_rows(found, rejected & (found.reason == reason), share)
    return chosen


def _spread_rows(found: Candidates, of: np.ndarray, count: int) -> list[int]:
    rows = np.flatnonzero(of & found.readable)
    return [int(row) for row in rows[spread(found.similarity[rows], count)]]


def read_rows(tables: Tables, stage: str, numbers: Sequence[int], columns: Sequence[str]) -> list[Row]:
    """Rows of a table by their numbers, in the order asked for."""
    wanted, found, start = np.array(sorted(set(numbers)), np.int64), {}, 0
    for part in range(tables.parts):
        rows = tables.rows(stage, part)
        inside = wanted[(wanted >= start) & (wanted < start + rows)]
        if len(inside):
            table = tables.read_part(stage, part, columns).take(pa.array(inside - start))
            found |= dict(zip(inside.tolist(), table.to_pylist(), strict=True))
        start += rows
    return [found[number] for number in numbers]
