"""What an evaluation leaves: results.json, table.md, per_case.csv, radar.png, grid.png, and report.html, which needs no
other file.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import jinja2
from PIL import Image

from phantom_mega.curation.report.grid import jpeg
from phantom_mega.curation.report.reading import shown
from phantom_mega.evaluation import opens2v
from phantom_mega.evaluation import tables as texts
from phantom_mega.evaluation.config import EvaluationConfig
from phantom_mega.evaluation.figures import Drawn, choose, draw_cards, radar
from phantom_mega.evaluation.registry import METRICS
from phantom_mega.evaluation.results import ALL, Tables, as_json
from phantom_mega.files import whole_file, write_json
from phantom_mega.pictures import sheet

TEMPLATE = "report.html.jinja"
MOST_MISSING = 60  # lines of a metric and method; the rest is in per_case.csv
MOST_CARDS = 60


def write_reports(tables: Tables, config: EvaluationConfig, output: Path, made: datetime | None = None) -> None:
    """Write all files, each whole or not at all.

    Args:
        tables: what they show.
        config: of the evaluation.
        output: a folder that is there.
        made: time that the page bears; now by default.

    Raises:
        UserError: a file cannot be written.
    """
    confidence = config.evaluation.confidence
    write_json(as_json(tables, config), output / "results.json")
    for number, method in enumerate(tables.results.methods, start=1):
        scores = tables.opens2v[method.name]
        folder = output / "opens2v" / (f"{number}" if len(tables.results.methods) > 1 else "")
        if scores.results:
            opens2v.write_results(scores.results, folder)
        if scores.summary:
            opens2v.write_submission(scores.summary, folder / "submission.json")
    with whole_file(output / "table.md") as path:
        path.write_text(texts.markdown(tables, confidence), encoding="utf-8", errors="replace")
    texts.write_csv(tables, output / "per_case.csv")
    cards = draw_cards(tables.results, choose(tables.results)[:MOST_CARDS])
    figure = radar(tables)
    _save(figure, output / "radar.png")
    _save(_grid(cards), output / "grid.png")
    page = render(tables, confidence, cards, figure, made or datetime.now(UTC))
    with whole_file(output / "report.html") as path:
        path.write_bytes(page.encode("utf-8", "replace"))


def _save(picture: Image.Image | None, path: Path) -> None:
    """Write a picture; where there is none, that of an earlier evaluation goes."""
    if picture is None:
        path.unlink(missing_ok=True)
        return
    with whole_file(path) as temporary:
        picture.quantize(256).save(temporary, "PNG", optimize=True)


def _grid(cards: Sequence[Drawn]) -> Image.Image | None:
    if not cards:
        return None
    ranked = [_titled(one) for one in cards]
    legend = "left: reference images   right: frames of the video, its prompt"
    return sheet(ranked, f"{len(cards)} cases worth a look", legend, columns=1 if len(cards) < 4 else 2)


def _titled(one: Drawn) -> Image.Image:
    """A card under a line that tells why it is shown."""
    from PIL import ImageDraw

    from phantom_mega.pictures import INK, PAD, font

    out = Image.new("RGB", (one.picture.width, one.picture.height + 26), "white")
    out.paste(one.picture, (0, 26))
    text = f"{METRICS[one.chosen.metric].title}: {shown(one.chosen.rank, 80)}"
    ImageDraw.Draw(out).text((PAD, 8), text, fill=INK, font=font(14, bold=True))
    return out


def render(
    tables: Tables, confidence: float, cards: Sequence[Drawn], figure: Image.Image | None, made: datetime
) -> str:
    """The page's text.

    Args:
        tables: what it shows.
        confidence: of the intervals.
        cards: cases worth a look.
        figure: the radar, if there is one.
        made: when.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"picture": _data_uri, "shown": shown, "number": texts.number, "p": texts.p_value}
    results = tables.results
    return environment.get_template(TEMPLATE).render(
        results=results, metrics=METRICS, notes=texts.notes(tables, confidence), figure=figure,
        made=f"{made:%Y-%m-%d %H:%M %Z}".strip(), tables=_cells(tables), compared=_compared(tables),
        missing=_missing(tables), most=MOST_MISSING, groups=_by_metric(cards),
    )  # fmt: skip


def _cells(tables: Tables) -> list[dict]:
    """Tables whose cells have a mean, an interval, what is missing, and whether no method has a better mean."""
    found = []
    for title, names, track in tables.shown():
        rows = []
        for method in tables.results.methods:
            cells = []
            for name in names:
                summary = tables.summaries[method.name, name, track]
                text = texts.cell(summary, name)
                mean, _, interval = text.partition(" ")
                missing = texts.about_missing(tables, method.name, name, track)
                best = summary.interval is not None and _is_best(tables, summary.interval.mean, name, track)
                cells.append({"mean": mean, "interval": interval, "missing": missing, "best": best})
            rows.append((method.name, cells))
        count = max(tables.summaries[tables.results.methods[0].name, name, track].videos for name in names)
        found.append(
            {"title": title, "columns": [METRICS[name].column for name in names], "rows": rows, "count": count}
        )
    return found


def _is_best(tables: Tables, mean: float, metric: str, track: str) -> bool:
    methods = tables.results.methods
    means = [tables.summaries[method.name, metric, track].interval.mean for method in methods]
    return len(methods) > 1 and mean == (max if METRICS[metric].higher_is_better else min)(means)


def _compared(tables: Tables) -> list[dict]:
    return [
        {"metric": METRICS[metric].column, "other": other, "difference": texts.difference(found, metric),
         "p": texts.p_value(found.p_value), "wins": found.wins, "losses": found.losses,
         "clear": found.p_value < 0.05}
        for (other, metric), found in tables.comparisons.items()
    ]  # fmt: skip


def _missing(tables: Tables) -> list[dict]:
    """What is missing, by method and metric: lines (case, reason). Videos that are not there are told once, above."""
    found = []
    for method in tables.results.methods:
        absent = [case.id for case in tables.results.cases if case.id not in method.videos]
        if absent:
            lines = [(id, "there is no video") for id in absent]
            found.append({"method": method.name, "metric": "All metrics", "lines": lines, "count": len(absent)})
        for metric in tables.results.metrics:
            values = tables.results.values[method.name][metric]
            lines = [
                (id, value.missing) for id, value in values.items()
                if value.missing and value.applies and id in method.videos
            ]  # fmt: skip
            if lines:
                count = tables.summaries[method.name, metric, ALL].videos
                found.append({"method": method.name, "metric": METRICS[metric].title, "lines": lines, "count": count})
    return found


def _by_metric(cards: Sequence[Drawn]) -> dict[str, list[Drawn]]:
    groups: dict[str, list[Drawn]] = {}
    for one in cards:
        groups.setdefault(METRICS[one.chosen.metric].title, []).append(one)
    return groups


def _data_uri(image: Image.Image, kind: str = "jpeg") -> str:
    if kind == "jpeg":
        return "data:image/jpeg;base64," + base64.b64encode(jpeg(image)).decode()
    buffer = io.BytesIO()
    image.quantize(256).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
