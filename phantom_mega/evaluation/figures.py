"""Figures of an evaluation: a radar of all metrics, and cards of references beside frames for cases worth a look."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from phantom_mega.curation.report.figures import STYLE
from phantom_mega.curation.report.reading import shown
from phantom_mega.errors import UserError
from phantom_mega.evaluation.frames import read_video, uniform
from phantom_mega.evaluation.registry import METRICS
from phantom_mega.evaluation.results import ALL, Results, Tables
from phantom_mega.evaluation.tables import number
from phantom_mega.evaluation.videos import labels_of
from phantom_mega.generation.cases import Case
from phantom_mega.images import open_reference
from phantom_mega.pictures import COLOURS, GAP, PAD, card, message_card, phrase_colours, reference_tile, shortened

LEAST_AXES = 3
FRAMES = 4
_COLOURS = (COLOURS[1], COLOURS[0], *COLOURS[2:])


# -- radar


def axis_of(metric: str) -> str:
    """Title of a metric's axis. Outwards is better: where lower is better, the axis shows what is left."""
    entry = METRICS[metric]
    title = entry.title if entry.higher_is_better else f"{entry.most:g} − {entry.title}"
    return title if entry.most == 1 else f"{title} / {entry.most:g}"


def place(metric: str, value: float) -> float:
    """Where a value lies on its axis, 0 at the centre and 1 at the rim."""
    entry = METRICS[metric]
    share = value / entry.most
    return min(1.0, max(0.0, share if entry.higher_is_better else 1 - share))


def radar(tables: Tables) -> Image.Image | None:
    """Means of all methods, an axis for each metric; None where fewer than three metrics have a mean.

    Axes run from 0 to 1 (cosines with texts: to 40 of 100), the same in every report.
    """
    results = tables.results
    summaries = tables.summaries
    names = [name for name in results.metrics if summaries[results.methods[0].name, name, ALL].interval]
    if len(names) < LEAST_AXES:
        return None
    angles = np.linspace(0, 2 * math.pi, len(names), endpoint=False)
    with rc_context(STYLE | {"font.size": 9}):
        figure = Figure(figsize=(9, 7), dpi=120, layout="constrained")
        axes = figure.add_subplot(projection="polar")
        axes.set_theta_offset(math.pi / 2)
        axes.set_theta_direction(-1)
        axes.set_ylim(0, 1)
        axes.set_rlabel_position(180 / len(names))  # between the first two axes
        axes.set_yticks([0.25, 0.5, 0.75, 1], ["", "0.5", "", "1"])
        axes.set_xticks(angles, [_label(tables, name) for name in names])
        axes.tick_params(axis="x", pad=8)
        for label, angle in zip(axes.get_xticklabels(), angles):
            side = math.sin(angle)
            label.set_horizontalalignment("center" if abs(side) < 0.1 else "left" if side > 0 else "right")
        for method, colour in zip(results.methods, _cycle(len(results.methods))):
            means = [summaries[method.name, name, ALL].interval.mean for name in names]
            places = [place(name, mean) for name, mean in zip(names, means)]
            axes.plot([*angles, angles[0]], [*places, places[0]], color=colour, label=shown(method.name, 60), lw=2)
            axes.fill(angles, places, color=colour, alpha=0.12)
        axes.spines["polar"].set_visible(True)
        figure.legend(loc="outside lower center", ncols=min(3, len(results.methods)))
        return _drawn(figure)


def _label(tables: Tables, metric: str) -> str:
    """Title of an axis, under it the mean of each method."""
    entry = METRICS[metric]
    means = [tables.summaries[method.name, metric, ALL].interval.mean for method in tables.results.methods[:4]]
    texts = [number(mean if entry.higher_is_better else entry.most - mean, metric) for mean in means]
    return f"{axis_of(metric)}\n{' · '.join(texts)}"


def _cycle(count: int) -> list[str]:
    return [_COLOURS[i % len(_COLOURS)] for i in range(count)]


def _drawn(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", bbox_inches="tight", pad_inches=0.2)
    return Image.open(buffer).convert("RGB")


# -- cards


@dataclass(frozen=True)
class Chosen:
    """A case worth a look.

    Attributes:
        metric: by which it was chosen.
        rank: what it is among the others, such as "best".
        case: its id.
    """

    metric: str
    rank: str
    case: str


def choose(results: Results) -> list[Chosen]:
    """Best, median and worst case of each metric, by the first method; of several methods by the difference of the
    first two. Cases that stand at several ranks (there are few) are shown once; those without a video of each are not.
    """
    names = [method.name for method in results.methods]
    ranks = ("best", "median", "worst")
    if len(names) > 1:
        ranks = (f"best for {names[0]}", "median difference", f"best for {names[1]}")
    chosen = []
    for metric in results.metrics:
        values = [results.counted(name, metric) for name in names[:2]]
        sign = 1 if METRICS[metric].higher_is_better else -1
        rest = values[1] if len(names) > 1 else dict.fromkeys(values[0], 0.0)
        seen = [id for id in values[0] if not any(results.values[name][metric][id].broken for name in names[:2])]
        order = sorted(seen, key=lambda id: -sign * (values[0][id] - rest[id]))
        found: dict[str, str] = {}
        for rank, place in zip(ranks, (0, len(order) // 2, len(order) - 1)):
            if order:
                found.setdefault(order[place], rank)
        chosen += [Chosen(metric, rank, id) for id, rank in found.items()]
    return chosen


@dataclass(frozen=True)
class Drawn:
    """A chosen case with its picture."""

    chosen: Chosen
    picture: Image.Image


def draw_cards(results: Results, chosen: Sequence[Chosen]) -> list[Drawn]:
    """A card for each chosen case: references beside frames, one line of frames for each method."""
    cases = {case.id: case for case in results.cases}
    drawn: dict[tuple[str, str], list[Image.Image] | str] = {}
    for id in {one.case for one in chosen}:
        for method in results.methods:
            drawn[method.name, id] = _frames(method.videos.get(id))
    return [Drawn(one, _stacked(results, one, cases[one.case], drawn)) for one in chosen]


def _frames(path: object) -> list[Image.Image] | str:
    """A few frames of a video, or why there are none."""
    if path is None:
        return "there is no video"
    try:
        return [Image.fromarray(frame) for frame in uniform(read_video(path)[0], FRAMES)]
    except UserError as error:
        return str(error)


def _stacked(results: Results, chosen: Chosen, case: Case, drawn: dict) -> Image.Image:
    """Cards of a case under each other, one for each method."""
    cards = []
    for method in results.methods:
        value = results.values[method.name][chosen.metric][case.id]
        title = f"{METRICS[chosen.metric].title} {number(value.value, chosen.metric)}"
        name = f"{shown(method.name, 40)}: " if len(results.methods) > 1 else ""
        missing = "" if value.broken else f"   {shown(value.missing, 90)}"
        cards.append(_card(case, title, f"{name}{case.id}{missing}", drawn[method.name, case.id]))
    width = max(one.width for one in cards)
    out = Image.new("RGB", (width, sum(one.height for one in cards)), "white")
    y = 0
    for one in cards:
        out.paste(one, (0, y))
        y += one.height
    return out


def _card(case: Case, title: str, about: str, frames: list[Image.Image] | str) -> Image.Image:
    if isinstance(frames, str):
        return message_card(f"{title}   {about}", shown(frames, 200))
    labels = labels_of(case)
    tiles = [
        reference_tile(Image.fromarray(open_reference(path, i + 1)), COLOURS[i % len(COLOURS)], shown(labels[i], 60))
        for i, path in enumerate(case.images)
    ]
    width = 800 + PAD - GAP  # of the frames' part of a card
    return card(title, shortened(about, width, 11), tiles, frames, phrase_colours(shown(case.prompt, 400), labels))
