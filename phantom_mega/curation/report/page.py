"""The page: one HTML file that needs no other, whatever the data's names hold."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import jinja2
from markupsafe import Markup
from PIL import Image

from phantom_mega.curation.report import figures
from phantom_mega.curation.report.candidates import Chosen
from phantom_mega.curation.report.figures import Cuts
from phantom_mega.curation.report.grid import Shown, jpeg
from phantom_mega.curation.report.precision import confusions
from phantom_mega.curation.report.reading import shown
from phantom_mega.curation.report.summary import Counts

TEMPLATE = "report.html.jinja"
MOST_REASONS, MOST_CONFUSIONS = 20, 30


@dataclass
class Grid:
    """Pairs that are shown, and how many are not."""

    pairs: list[Shown]
    chosen: Chosen


def render(
    counts: Counts, made: datetime, title: str, accepted: Grid, rejected: Grid, cuts: Cuts, face_cuts: Cuts
) -> str:
    """The page's text.

    Args:
        counts: all numbers.
        made: when.
        title: what was curated.
        accepted, rejected: pairs with their pictures.
        cuts, face_cuts: (least, greatest) similarity; None where there is no such cut.
    """
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    drawn = iter(range(1, 1000))
    environment.filters |= {
        "figure": lambda panel: Markup(figures.svg(panel, next(drawn))), "picture": picture, "number": number,
        "hours": lambda hours: "–" if hours is None else figures.hours_of(hours), "shown": shown, "share": share,
        "decimal": decimal,
    }  # fmt: skip
    return environment.get_template(TEMPLATE).render(
        counts=counts, made=f"{made:%Y-%m-%d %H:%M %Z}".strip(), title=shown(title), accepted=accepted,
        rejected=rejected,
        funnel=[panel for panel in (figures.rows_panel(counts.stages), figures.funnel_panel(counts.stages)) if panel],
        statistics=figures.statistics_panels(counts.statistics),
        similarities=figures.similarity_panels(counts.candidates, cuts, face_cuts) if counts.candidates else [],
        labels=_labels(counts, cuts, face_cuts), most_reasons=MOST_REASONS, most_confusions=MOST_CONFUSIONS,
        failed=[one for one in counts.stages if one.failed], rejected_crops=_rejected_crops(counts),
    )  # fmt: skip


def _labels(counts: Counts, cuts: Cuts, face_cuts: Cuts) -> dict:
    """What is told of labels by hand; nothing without them."""
    if counts.labelled is None:
        return {}
    panels = figures.precision_panels(counts.labelled, cuts, face_cuts)
    return {"precision": counts.precision, "panels": panels, "confusions": confusions(counts.labelled),
            "total": len(counts.labelled)}  # fmt: skip


def _rejected_crops(counts: Counts) -> list[tuple[str, int]]:
    return next((one.ordered() for one in counts.stages if one.stage == "crops"), [])


def picture(image: Image.Image) -> str:
    """A picture as a data URI."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(image)).decode()


def number(value: int | None) -> str:
    """1,234, or a dash."""
    return "–" if value is None else f"{value:,}"


def decimal(value: float | None) -> str:
    """0.123, or a dash."""
    return "–" if value is None or math.isnan(value) else f"{value:,.3f}" if abs(value) < 100 else f"{value:,.1f}"


def share(part: float, total: float) -> str:
    """Per cent."""
    return f"{part / total:.1%}" if total else "–"
