"""All that a report tells, as numbers: counted once, then drawn, and printed by whoever runs the stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from phantom_mega.curation.engine.stage import Stage
from phantom_mega.curation.report import candidates, grid, precision, statistics
from phantom_mega.curation.report.counts import StageCounts, Sums, count_stages, sum_input, sum_samples
from phantom_mega.curation.report.reading import Tables, shown
from phantom_mega.curation.samples import SPLITS
from phantom_mega.data.index import INDEX_NAME, TripletIndex
from phantom_mega.errors import UserError

TABLES, SHARDS = "tables", "shards"  # folders below the output


@dataclass
class Counts:
    """What was counted.

    Attributes:
        stages: that have run, in their order.
        missing: what is left out -> why.
        input: totals of what could be read.
        splits: split -> totals of its samples.
        written: split -> samples in its shards.
        settings: (name, value, default) of those that differ.
        statistics: of the data set.
        candidates: for pairs; None where the stage has not run.
        labelled: cross pairs with labels by hand; None without labels.
        image_parts: parts of the table `crops` whose images may be read.
    """

    stages: list[StageCounts]
    missing: dict[str, str]
    input: Sums
    splits: dict[str, Sums]
    written: dict[str, int]
    settings: list[tuple[str, str, str]]
    statistics: statistics.Statistics
    candidates: candidates.Candidates | None = None
    labelled: list[precision.LabelledPair] | None = None
    image_parts: set[int] = field(default_factory=set)

    @property
    def precision(self) -> precision.Precision | None:
        """Of cross pairs, by labels by hand."""
        return None if self.labelled is None else precision.precision_of(self.labelled)

    def totals(self) -> list[str]:
        """What the splits hold, and the precision, for a terminal."""
        lines = []
        for split, sums in self.splits.items():
            totals = [f"{getattr(sums, name) or 0:,} {name}" for name in ("samples", "references", "cross")]
            lines.append(f"{split}: {', '.join(totals)}")
        return [*lines, self.precision.line()] if self.precision else lines


def funnel(stages: Sequence[StageCounts]) -> list[str]:
    """Rows that each stage accepted and rejected, with the reasons, for a terminal."""
    width = max([len(counts.stage) for counts in stages] + [8]) + 2
    lines = [f"{'stage':<{width}}{'accepted':>12}{'rejected':>12}  reasons"]
    for counts in stages:
        why = ", ".join(f"{shown(reason, 60)} {count:,}" for reason, count in counts.ordered())
        lines.append(f"{counts.stage:<{width}}{counts.accepted:>12,}{counts.rejected:>12,}  {why}".rstrip())
    return lines


def count(output: Path, stages: Sequence[Stage], config: Any, parts: int, defaults: Any = None) -> Counts:
    """Count what a curation has made so far.

    Args:
        output: its folder.
        stages: in their order.
        config: settings, a dataclass or a mapping of sections.
        parts: of each table.
        defaults: to compare the settings with; those of the dataclass if None.

    Raises:
        UserError: a table is damaged.
    """
    tables = Tables(output / TABLES, stages, parts)
    missing, indexes = dict(tables.missing), _indexes(output / SHARDS)
    for split, found in list(indexes.items()):
        if isinstance(found, str):
            missing[f"shards of {split}"] = found
            del indexes[split]
    counted = count_stages(tables)
    splits = sum_samples(tables)
    for split, index in indexes.items():
        _take_written(splits.setdefault(split, Sums()), index)
    image_parts = grid.image_parts(tables)
    return Counts(
        stages=counted,
        missing=missing,
        input=sum_input(counted),
        splits={split: splits[split] for split in [*SPLITS, *sorted(splits.keys() - set(SPLITS))] if split in splits},
        written={split: len(index) for split, index in indexes.items()},
        settings=differences(config, defaults),
        statistics=statistics.gather(tables, list(indexes.values())),
        candidates=candidates.read_candidates(tables, image_parts),
        labelled=precision.read_labels(tables),
        image_parts=image_parts,
    )


def _indexes(shards: Path) -> dict[str, TripletIndex | str]:
    """Of each split, or why it is left out."""
    found: dict[str, TripletIndex | str] = {}
    for split in SPLITS:
        if not (shards / split / INDEX_NAME).is_file():
            found[split] = "have not been written"
            continue
        try:
            found[split] = TripletIndex.open(shards / split)
        except UserError as error:
            found[split] = str(error)
    return found


def _take_written(sums: Sums, index: TripletIndex) -> None:
    """What shards hold is what counts, where they were written."""
    _, kinds = index.reference_kinds()
    sums.samples, sums.references, sums.cross = len(index), len(kinds), int(np.sum(kinds == "cross"))
    if sums.hours is None and len(index):
        moving = index.table.filter(pc.greater(index.table["fps"], 0))
        sums.hours = (pc.sum(pc.divide(moving["frames"], moving["fps"])).as_py() or 0.0) / 3600


def differences(config: Any, defaults: Any = None) -> list[tuple[str, str, str]]:
    """(name, value, default) of settings that are not the defaults; all of them where no default is known."""
    if defaults is None and dataclasses.is_dataclass(config):
        defaults = type(config)()
    mine, theirs = flatten(config), flatten(defaults)
    return [
        (name, shown(value, 200), shown(theirs.get(name, ""), 200))
        for name, value in mine.items()
        if name not in theirs or value != theirs[name]
    ]


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by `section.name`."""
    if dataclasses.is_dataclass(config):
        config = {one.name: getattr(config, one.name) for one in dataclasses.fields(config)}
    if not isinstance(config, Mapping):
        return {} if config is None else {prefix.removesuffix("."): config}
    return {name: value for key, one in config.items() for name, value in flatten(one, f"{prefix}{key}.").items()}
