"""The report of a curation: `report.html`, a page that needs no other file, and `report.png`, its overview.

It is made from the tables of the stages that have run and from the written shards' indexes; the rest is named as left
out. Numbers are those of the paper's Figure 11, and those that thresholds are tuned by.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from phantom_mega.curation.engine.stage import Stage
from phantom_mega.curation.report.candidates import Chosen, choose_accepted, choose_rejected
from phantom_mega.curation.report.figures import Cuts
from phantom_mega.curation.report.grid import read_grid
from phantom_mega.curation.report.overview import draw_overview
from phantom_mega.curation.report.page import Grid, render
from phantom_mega.curation.report.precision import Precision, precision_of
from phantom_mega.curation.report.reading import Tables
from phantom_mega.curation.report.summary import TABLES, Counts, count
from phantom_mega.files import whole_file

__all__ = ["Counts", "Precision", "count", "precision_of", "write_report"]
PAGE_NAME, PICTURE_NAME = "report.html", "report.png"
MOST_PAIRS = 24  # of each grid


def write_report(
    output: Path,
    stages: Sequence[Stage],
    config: Any,
    parts: int,
    *,
    cuts: Cuts = (None, None),
    face_cuts: Cuts = (None, None),
    made: datetime | None = None,
    defaults: Any = None,
) -> Counts:
    """Write `report.html` and `report.png` into the output of a curation, each whole or not at all.

    Args:
        output: of the curation; its tables lie below.
        stages: in their order, whether they have run or not.
        config: settings, a dataclass or a mapping of sections; those that differ from the defaults are told.
        parts: of each table.
        cuts: (least, greatest) similarity of images that pairs were chosen by; None for no such cut.
        face_cuts: the same of faces.
        made: time that the report bears; now by default.
        defaults: to compare the settings with, where `config` is no dataclass.

    Raises:
        UserError: a table is damaged, or the report cannot be written.
    """
    output, made = Path(output), made or datetime.now(UTC)
    counts = count(output, stages, config, parts, defaults)
    tables = Tables(output / TABLES, stages, parts)
    accepted, rejected = _grids(tables, counts)
    page = render(counts, made, output.absolute().name, accepted, rejected, cuts, face_cuts)
    picture = draw_overview(counts, made, accepted, rejected, cuts, face_cuts)
    with whole_file(output / PAGE_NAME) as path:
        path.write_bytes(page.encode("utf-8", "replace"))
    with whole_file(output / PICTURE_NAME) as path:
        picture.quantize(256).save(path, "PNG", optimize=True)  # a third of the bytes
    return counts


def _grids(tables: Tables, counts: Counts) -> tuple[Grid, Grid]:
    """Accepted and rejected pairs to look at; empty where stages have not run."""
    if counts.candidates is None or not counts.image_parts:
        return Grid([], Chosen()), Grid([], Chosen())
    good, bad = (choose(counts.candidates, MOST_PAIRS) for choose in (choose_accepted, choose_rejected))
    return (
        Grid(read_grid(tables, good, counts.image_parts, True), good),
        Grid(read_grid(tables, bad, counts.image_parts, False), bad),
    )
