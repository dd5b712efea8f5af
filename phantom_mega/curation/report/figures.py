"""Figures of a report: each draws into axes, so that the page (SVG) and the overview (PNG) show the same."""

from __future__ import annotations

import contextlib
import html
import io
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from phantom_mega.curation.report.candidates import Candidates
from phantom_mega.curation.report.counts import StageCounts
from phantom_mega.curation.report.precision import Curve, LabelledPair, curve_of
from phantom_mega.curation.report.reading import shown
from phantom_mega.curation.report.statistics import Statistics
from phantom_mega.pictures import COLOURS, FAINT, INK

GOOD, BAD = COLOURS[1], COLOURS[0]  # accepted, rejected
GRID = "#d5dae1"
MOST_BARS = 12
WIDTH = 4.6  # inches
Cuts = tuple[float | None, float | None]  # (least, greatest) similarity; None where there is no such cut
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 8.5, "text.parse_math": False, "text.color": INK, "axes.edgecolor": GRID,
    "axes.labelcolor": FAINT, "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelcolor": FAINT,
    "ytick.labelcolor": INK, "axes.facecolor": "none", "figure.facecolor": "none", "axes.spines.top": False,
    "axes.spines.right": False, "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.6,
    "legend.frameon": False, "svg.fonttype": "path", "svg.hashsalt": "report",
}  # fmt: skip
# In a page the colours follow its own, light or dark.
_VARIABLES = {
    INK: "--ink", FAINT: "--faint", GRID: "--line", **{colour: f"--c{i}" for i, colour in enumerate(COLOURS)}
}  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """One figure.

    Attributes:
        title: what it shows.
        note: of what, how many.
        draw: into axes.
        height: inches.
    """

    title: str
    note: str
    draw: Callable[[Axes], None]
    height: float = 2.4


# -- drawing


def short(number: float) -> str:
    """1234 as 1.2k."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.1f}".removesuffix(".0") + unit
    return f"{number:g}"


def bars(axes: Axes, labels: Sequence[str], values: Sequence[float], texts: Sequence[str], colour: str = GOOD) -> None:
    """Bars from the left, the first on top, a text at the end of each."""
    places = np.arange(len(values))
    axes.set_ylim(max(len(values), 3) - 0.5, -0.5)  # the first on top; a single bar is no thicker than others
    axes.barh(places, values, height=0.72, color=colour)
    axes.set_yticks(places, [shown(label, 28) for label in labels])
    most = max([*values, 0]) or 1
    for place, value, text in zip(places, values, texts, strict=True):
        axes.text(value + most * 0.015, place, text, va="center", color=FAINT, fontsize=8)
    axes.set_xlim(0, most * 1.32)
    axes.tick_params(left=False)
    axes.xaxis.set_visible(False)
    axes.spines[["bottom"]].set_visible(False)


def counted(counts: Counter, by_key: bool = False) -> Callable[[Axes], None]:
    """Bars of counts with their shares: by count, or by key; the rest in one."""
    items = sorted(counts.items()) if by_key else sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))
    if len(items) > MOST_BARS:
        rest = items[MOST_BARS - 1 :]
        items = [*items[: MOST_BARS - 1], (f"{len(rest):,} others", sum(count for _, count in rest))]
    total = counts.total() or 1
    texts = [f"{count:,} · {count / total:.1%}" for _, count in items]
    return lambda axes: bars(axes, [str(key) for key, _ in items], [count for _, count in items], texts)


def histogram(values: np.ndarray, label: str, bins: int = 30, whole: bool = False) -> Callable[[Axes], None]:
    """Columns over a number; whole numbers get bins of whole width."""

    def draw(axes: Axes) -> None:
        least, most = float(values.min()), float(values.max())
        if whole:
            step = max(1, -(-int(most - least + 1) // bins))
            edges = np.arange(least - 0.5, most + 0.5 + step, step)
        else:
            edges = np.linspace(least, most if most > least else least + 1, bins + 1)
        counts, _ = np.histogram(values, edges)
        axes.bar(edges[:-1], counts, np.diff(edges) * 0.94, align="edge", color=GOOD)
        median = float(np.median(values))
        axes.axvline(median, color=BAD, linewidth=1.2)
        axes.annotate(
            f"median {median:,.3g}", (median, 1), (4, -2), xycoords=("data", "axes fraction"),
            textcoords="offset points", va="top", color=BAD, fontsize=8,
        )  # fmt: skip
        axes.set_ylim(0, counts.max() * 1.18 or 1)
        if whole:
            axes.set_xlim(min(edges[0], median - 5), max(edges[-1], median + 5))
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        _frame(axes, label)

    return draw


def _frame(axes: Axes, label: str) -> None:
    axes.set_xlabel(label)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.tick_params(left=False, labelcolor=FAINT)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y")


def similarities(
    values: np.ndarray, accepted: np.ndarray, cuts: Sequence[tuple[str, float]], label: str
) -> Callable[[Axes], None]:
    """Accepted and rejected candidates on each other, with the cuts.

    Args:
        values: float [n], finite.
        accepted: bool [n].
        cuts: (name, value).
        label: of the axis.
    """

    def draw(axes: Axes) -> None:
        ends = [*(values.min(), values.max()), *(value for _, value in cuts)]
        low, high = np.floor(min(ends) * 20) / 20, np.ceil(max(ends) * 20) / 20
        edges = np.linspace(low, high if high > low else low + 0.05, 49)
        good, bad = (np.histogram(values[of], edges)[0] for of in (accepted, ~accepted))
        width = np.diff(edges) * 0.94
        axes.bar(edges[:-1], good, width, align="edge", color=GOOD, label=f"accepted ({accepted.sum():,})")
        axes.bar(
            edges[:-1], bad, width, good, align="edge", color=BAD, alpha=0.55, label=f"rejected ({(~accepted).sum():,})"
        )
        top = (good + bad).max() or 1
        axes.set_ylim(0, top * 1.25)
        for place, (name, value) in enumerate(cuts):
            axes.axvline(value, color=INK, linewidth=1.1, linestyle=(0, (4, 2)))
            right = value > (low + high) / 2
            axes.annotate(
                f"{name} {value:g}", (value, 1), (-4 if right else 4, -2 - 11 * (place % 2)),
                xycoords=("data", "axes fraction"), textcoords="offset points", va="top",
                ha="right" if right else "left", fontsize=8,
            )  # fmt: skip
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8, borderaxespad=0.2, handlelength=1.2)
        _frame(axes, label)

    return draw


def kinds(counts: Counter[tuple[str, str]]) -> Callable[[Axes], None]:
    """References by category, cross and in-pairs on each other."""
    categories = Counter()
    for (category, _), count in counts.items():
        categories[category] += count
    names = [name for name, _ in sorted(categories.items(), key=lambda item: (-item[1], item[0]))][:MOST_BARS]

    def draw(axes: Axes) -> None:
        cross = [counts[name, "cross"] for name in names]
        texts = [f"{count:,} cross of {categories[name]:,}" for name, count in zip(names, cross, strict=True)]
        totals = [categories[name] for name in names]
        bars(axes, names, totals, texts, GRID)
        axes.set_xlim(0, max(totals) * 1.55)
        axes.barh(np.arange(len(names)), cross, height=0.72, color=GOOD)

    return draw


def precision_recall(curve: Curve, cut: float | None) -> Callable[[Axes], None]:
    """Precision and recall over the lower cut."""

    def draw(axes: Axes) -> None:
        for values, colour, name in ((curve.precision, GOOD, "precision"), (curve.recall, COLOURS[2], "recall")):
            axes.step(curve.cut, values, where="pre", color=colour, label=name, linewidth=1.6)
        if cut is not None:
            axes.axvline(cut, color=INK, linewidth=1.1, linestyle=(0, (4, 2)), label=f"cut {cut:g}")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=8, borderaxespad=0.2, handlelength=1.4)
        _frame(axes, "similarity at least")
        axes.set_ylim(0, 1.04)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))

    return draw


# -- which figures there are


def funnel_panel(stages: Sequence[StageCounts]) -> Panel | None:
    """Hours of video that are left after each stage whose rows are pieces of video."""
    known = [counts for counts in stages if counts.hours is not None and counts.stage != "files"]
    if not known:
        return None
    first = known[0].hours or 1
    texts = [f"{hours_of(counts.hours)} · {counts.hours / first:.1%}" for counts in known]
    names, hours = [counts.stage for counts in known], [counts.hours for counts in known]
    return Panel(
        "Video left after each stage", "Sum of the spans of accepted rows; the share is of the first stage's.",
        lambda axes: bars(axes, names, hours, texts), _bar_height(len(known)),
    )  # fmt: skip


def hours_of(hours: float) -> str:
    """Hours in the unit that reads best."""
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:.1f} min" if hours >= 1 / 60 else f"{hours * 3600:.1f} s"


def rows_panel(stages: Sequence[StageCounts]) -> Panel:
    """Accepted and rejected rows of each stage, as shares of the stage's rows."""

    def draw(axes: Axes) -> None:
        totals = [counts.accepted + counts.rejected for counts in stages]
        good = [counts.accepted / (total or 1) for counts, total in zip(stages, totals, strict=True)]
        bad = [counts.rejected / (total or 1) for counts, total in zip(stages, totals, strict=True)]
        texts = [f"{counts.accepted:,} of {total:,}" for counts, total in zip(stages, totals, strict=True)]
        bars(axes, [counts.stage for counts in stages], [1.0 if total else 0.0 for total in totals], texts, "none")
        axes.barh(np.arange(len(stages)), good, height=0.72, color=GOOD)
        axes.barh(np.arange(len(stages)), bad, height=0.72, left=good, color=BAD, alpha=0.55)
        axes.set_xlim(0, 1.5)

    return Panel(
        "Accepted rows of each stage", "Blue: accepted. Orange: rejected. One row of input may become many.",
        draw, _bar_height(len(stages)),
    )  # fmt: skip


def _bar_height(count: int) -> float:
    return 0.32 + 0.235 * max(3, min(count, 24))


def statistics_panels(found: Statistics) -> list[Panel]:
    """Figure 11 of the paper, as far as its tables are there."""
    panels = []
    for counts, by_key, title, note in (
        (found.subjects_per_clip, True, "Subjects per clip", "{:,} clips with named subjects"),
        (found.categories, False, "Categories of subjects", "{:,} subjects"),
        (found.references_per_sample, True, "References per sample", "{:,} samples"),
    ):
        if counts:
            note = note.format(counts.total())
            panels.append(Panel(title, note, counted(counts, by_key), _bar_height(min(len(counts), MOST_BARS))))
    if found.kinds:
        height = _bar_height(min(len({category for category, _ in found.kinds}), MOST_BARS))
        panels.append(Panel(
            "Cross pairs by category", f"{found.kinds.total():,} references of samples; grey: from the clip itself",
            kinds(found.kinds), height,
        ))  # fmt: skip
    if len(found.durations):
        note = f"{len(found.durations):,} clips, {found.durations_of}"
        panels.append(Panel("Clip durations", note, histogram(found.durations, "seconds")))
    if found.sizes:
        sizes = Counter({f"{width}×{height}": count for (width, height), count in found.sizes.items()})
        for title, counts in (("Resolutions", sizes), ("Aspect ratios", found.ratios)):
            note = f"{counts.total():,} clips, {found.sizes_of}"
            panels.append(Panel(title, note, counted(counts), _bar_height(min(len(counts), MOST_BARS))))
    if len(found.caption_words):
        note = f"{len(found.caption_words):,} captions"
        panels.append(Panel("Caption lengths", note, histogram(found.caption_words, "words", whole=True)))
    return panels


def similarity_panels(found: Candidates, cuts: Cuts, face_cuts: Cuts) -> list[Panel]:
    """Similarities of cross candidates, by image and by face."""
    panels = []
    for title, values, pair in (
        ("Similarity of images", found.similarity, cuts), ("Similarity of faces", found.face, face_cuts)
    ):  # fmt: skip
        of = found.cross & np.isfinite(values)
        if of.any():
            named = [(name, value) for name, value in zip(("min", "max"), pair, strict=True) if value is not None]
            unknown = int((found.cross & ~np.isfinite(values)).sum())
            note = f"{of.sum():,} candidates for cross pairs" + (f"; {unknown:,} without a value" if unknown else "")
            draw = similarities(values[of], found.accepted[of], named, "cosine similarity")
            panels.append(Panel(title, note, draw, 2.8))
    return panels


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Fonts, colours, and no warning about letters that the font lacks (users' text holds any)."""
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def precision_panels(pairs: Sequence[LabelledPair], cuts: Cuts, face_cuts: Cuts) -> list[Panel]:
    """Precision and recall over the lower cuts of images and of faces."""
    panels = []
    for faces, cut, name in ((False, cuts[0], "images"), (True, face_cuts[0], "faces")):
        curve = curve_of(pairs, faces)
        if len(curve.cut):
            of = "with two known faces" if faces else "without a face on one side"
            note = f"Recorded pairs {of}: accepted, or rejected by this cut; recall is of the right ones among them."
            panels.append(Panel(f"If the lower cut of {name} was moved", note, precision_recall(curve, cut), 2.8))
    return panels


def svg(panel: Panel, number: int) -> str:
    """A figure as an SVG element whose colours are the page's.

    Args:
        panel: to draw.
        number: another one for each figure of a page: names within it are then unique.
    """
    buffer = io.StringIO()
    with style():
        figure = Figure(figsize=(WIDTH, panel.height), layout="constrained")
        panel.draw(figure.add_subplot())
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(buffer, metadata=nothing)
    text = buffer.getvalue()
    text = re.sub(r"<!--.*?-->\s*|<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    start, rest = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', start)[0]
    for colour, variable in _VARIABLES.items():
        rest = rest.replace(colour, f"var({variable})")
    rest = re.sub(r'\bid="|(?<=href=")#|(?<=url\()#', lambda found: f"{found[0]}f{number}-", rest)
    return f'<svg role="img" aria-label="{html.escape(panel.title)}" {box}>{rest}'
