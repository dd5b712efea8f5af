"""`report.png`: figures and a few pairs in one picture, in the style of `pictures`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageOps

from phantom_mega.curation.report import figures
from phantom_mega.curation.report.figures import Cuts, Panel
from phantom_mega.curation.report.grid import Shown
from phantom_mega.curation.report.page import Grid, number
from phantom_mega.curation.report.summary import Counts
from phantom_mega.pictures import CARD, FAINT, INK, PAD, PAGE, draw_lines, font, wrap

COLUMNS, COLUMN_WIDTH, DPI = 3, 500, 100
HEAD, TILE, ROWS = 116, 128, 2  # pixels; rows of each grid
WIDTH = PAD + COLUMNS * (COLUMN_WIDTH + PAD)


def draw_overview(
    counts: Counts, made: datetime, accepted: Grid, rejected: Grid, cuts: Cuts, face_cuts: Cuts
) -> Image.Image:
    """The overview of a report; see `page.render`."""
    panels = [figures.rows_panel(counts.stages), figures.funnel_panel(counts.stages)]
    panels += figures.statistics_panels(counts.statistics)
    if counts.candidates:
        panels += figures.similarity_panels(counts.candidates, cuts, face_cuts)
    panels += figures.precision_panels(counts.labelled or [], cuts, face_cuts)
    cards = [draw_panel(panel) for panel in panels if panel]
    strips = [draw_strip(title, grid) for title, grid in (("Accepted pairs", accepted), ("Rejected", rejected))]
    return _stack(_head(counts, made), _columns(cards), *(strip for strip in strips if strip))


def _head(counts: Counts, made: datetime) -> Image.Image:
    """Title and totals."""
    out = Image.new("RGB", (WIDTH, HEAD), PAGE)
    draw = ImageDraw.Draw(out)
    draw.text((PAD, 14), "Curation report", fill=INK, font=font(22, bold=True))
    draw.text((PAD + 220, 22), f"{made:%Y-%m-%d}", fill=FAINT, font=font(13))
    totals = [counts.input.videos, counts.input.shots, counts.input.clips]
    samples = [
        [getattr(sums, name) or 0 for sums in counts.splits.values()] for name in ("samples", "references", "cross")
    ]
    facts = [("videos", totals[0]), ("shots", totals[1]), ("clips", totals[2])]
    facts += [(name, sum(values)) for name, values in zip(("samples", "references", "cross pairs"), samples) if values]
    texts = [(name, number(value)) for name, value in facts]
    if counts.input.hours is not None:
        texts.insert(1, ("of video", figures.hours_of(counts.input.hours)))
    step = (WIDTH - PAD) // max(len(texts), 1)
    for place, (name, text) in enumerate(texts):
        draw.text((PAD + place * step, 54), text, fill=INK, font=font(24, bold=True))
        draw.text((PAD + place * step, 86), name, fill=FAINT, font=font(13))
    return out


def draw_panel(panel: Panel) -> Image.Image:
    """A figure as a card."""
    inside = COLUMN_WIDTH - 2 * PAD
    with figures.style():
        figure = Figure(
            figsize=(inside / DPI, panel.height * inside / DPI / figures.WIDTH), dpi=DPI, layout="constrained"
        )
        figure.set_facecolor(CARD)
        panel.draw(figure.add_subplot())
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    note = wrap([(word, None) for word in panel.note.split()], inside, 11)
    top = PAD + 22 + 15 * len(note) + 6
    out = Image.new("RGB", (COLUMN_WIDTH, top + image.height + PAD), CARD)
    draw = ImageDraw.Draw(out)
    draw.text((PAD, PAD - 2), panel.title, fill=INK, font=font(14, bold=True))
    draw_lines(draw, PAD, PAD + 20, note, 11, FAINT)
    out.paste(image, (PAD, top))
    return out


def draw_strip(title: str, grid: Grid) -> Image.Image | None:
    """Some pairs of a grid, evenly taken, as a card of the whole width."""
    columns = (WIDTH - 4 * PAD) // (2 * TILE + 4 + PAD)
    step = (WIDTH - 4 * PAD + PAD) // columns
    count = min(len(grid.pairs), ROWS * columns)
    if not count:
        return None
    pairs = [grid.pairs[i] for i in np.linspace(0, len(grid.pairs) - 1, count).round().astype(int)]
    rows = -(-count // columns)
    out = Image.new("RGB", (WIDTH - 2 * PAD, 2 * PAD + 26 + rows * (TILE + 52)), CARD)
    draw = ImageDraw.Draw(out)
    draw.text((PAD, PAD - 2), title, fill=INK, font=font(14, bold=True))
    about = f"{count:,} of {grid.chosen.total:,}; reference on the left, the clip's subject on the right"
    draw.text((PAD + 10 + font(14, True).getlength(title), PAD + 1), about, fill=FAINT, font=font(11))
    for place, pair in enumerate(pairs):
        x, y = PAD + place % columns * step, PAD + 26 + place // columns * (TILE + 52)
        _paste_pair(out, draw, x, y, pair)
    return out


def _paste_pair(out: Image.Image, draw: ImageDraw.ImageDraw, x: int, y: int, pair: Shown) -> None:
    for place, image in enumerate((pair.reference, pair.subject)):
        left = x + place * (TILE + 4)
        if image is None:
            draw.rectangle((left, y, left + TILE - 1, y + TILE - 1), fill=PAGE)
            draw.text((left + TILE / 2, y + TILE / 2), "no image", fill=FAINT, font=font(10), anchor="mm")
        else:
            out.paste(ImageOps.fit(image, (TILE, TILE), Image.Resampling.LANCZOS), (left, y))
    known = [f"{name}{value:.3f}" for name, value in (("", pair.similarity), ("face ", pair.face)) if value is not None]
    first = " · ".join([*known, pair.reason or pair.kind])
    for line, (text, ink) in enumerate(((first, INK), (pair.phrase, FAINT))):
        while text and font(11).getlength(text) > 2 * TILE + 4:
            text = text[:-2].rstrip("…") + "…"
        draw.text((x, y + TILE + 5 + 16 * line), text, fill=ink, font=font(11))


def _columns(cards: Sequence[Image.Image]) -> Image.Image:
    """Cards in columns, each in the shortest."""
    stacks: list[list[Image.Image]] = [[] for _ in range(COLUMNS)]
    heights = [0] * COLUMNS
    for card in cards:
        shortest = heights.index(min(heights))
        stacks[shortest].append(card)
        heights[shortest] += card.height + PAD
    out = Image.new("RGB", (WIDTH, max(heights)), PAGE)
    for column, stack in enumerate(stacks):
        y = 0
        for card in stack:
            out.paste(card, (PAD + column * (COLUMN_WIDTH + PAD), y))
            y += card.height + PAD
    return out


def _stack(*pictures: Image.Image) -> Image.Image:
    """Pictures under each other, centred."""
    out = Image.new("RGB", (WIDTH, sum(one.height for one in pictures) + PAD * (len(pictures) - 2)), PAGE)
    y = 0
    for place, one in enumerate(pictures):
        out.paste(one, ((WIDTH - one.width) // 2, y))
        y += one.height + (PAD if place > 1 else 0)  # the head and the figures end with their own margin
    return out
