"""Tables as files: Markdown in the paper's columns, and a CSV line for each video."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from phantom_mega.curation.report.reading import shown
from phantom_mega.evaluation.registry import METRICS, track_of
from phantom_mega.evaluation.results import ALL, Summary, Tables
from phantom_mega.evaluation.statistics import Comparison, shortened
from phantom_mega.files import whole_file


def number(value: float, metric: str) -> str:
    """A value: three digits after the point, two for metrics that are times 100; a dash for none."""
    if math.isnan(value):
        return "–"
    return f"{value:.2f}" if METRICS[metric].most > 1 else f"{value:.3f}"


def cell(summary: Summary, metric: str) -> str:
    """Mean and interval, as 0.712 [0.690, 0.731]."""
    if summary.interval is None:
        return "–"
    mean = number(summary.interval.mean, metric)
    if math.isnan(summary.interval.low):
        return mean
    return f"{mean} [{number(summary.interval.low, metric)}, {number(summary.interval.high, metric)}]"


def difference(found: Comparison, metric: str) -> str:
    """Mean difference and interval, with its sign."""
    interval = found.difference
    ends = "" if math.isnan(interval.low) else f" [{number(interval.low, metric)}, {number(interval.high, metric)}]"
    return f"{'+' if interval.mean > 0 else ''}{number(interval.mean, metric)}{ends}"


def p_value(value: float) -> str:
    """A p-value with three digits, or that it is below them."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def about_missing(tables: Tables, method: str, metric: str, track: str) -> str:
    """How many videos lack something, as "3 of 50"; "" where none does."""
    summary = tables.summaries[method, metric, track]
    return f"{summary.missing} of {summary.videos}" if summary.missing else ""


def markdown(tables: Tables, confidence: float) -> str:
    """The tables that have something to show, and what is to be known about them."""
    results = tables.results
    lines = [f"# Evaluation of {_words(shortened([one.name for one in results.methods], 8))}", ""]
    for title, names, track in tables.shown():
        cases = sum(track in (ALL, track_of(case)) for case in results.cases)
        lines += [f"## {title} ({cases} {'case' if cases == 1 else 'cases'})", ""]
        lines += _row(["method", *(METRICS[name].column for name in names)])
        lines += _row(["---", *["---:"] * len(names)])
        for method in results.methods:
            cells = [cell(tables.summaries[method.name, name, track], name) for name in names]
            lines += _row([method.name, *cells])
        lines.append("")
    if tables.comparisons:
        lines += _compared(tables)
    lines += _notes(tables, confidence)
    return "\n".join(lines) + "\n"


def _compared(tables: Tables) -> list[str]:
    first = tables.results.methods[0].name
    lines = [f"## {_words(first)} minus the others (all cases)", ""]
    lines += _row(["metric", "other", "difference", "p", "larger", "smaller"])
    lines += _row(["---", "---", "---:", "---:", "---:", "---:"])
    for (other, metric), found in tables.comparisons.items():
        counts = [str(found.wins), str(found.losses)]
        texts = [METRICS[metric].column, other, difference(found, metric), p_value(found.p_value), *counts]
        lines += _row(texts)
    return [*lines, ""]


def notes(tables: Tables, confidence: float) -> list[str]:
    """What is to be known about the tables, a sentence or two each."""
    found = [
        f"Means over subjects (cases with the same references) with {confidence:.0%} BCa bootstrap intervals. What a "
        "metric did not find is zero; a video that is not there or cannot be read has the worst value.",
    ]
    if tables.comparisons:
        found.append("p: paired permutation test by subject, two-sided, not corrected for the number of metrics.")
    for method in tables.results.methods:
        absent = [case.id for case in tables.results.cases if case.id not in method.videos]
        if absent:
            found.append(f"{method.name}: no video of {shortened(absent, 20)} ({_counted(len(absent))}).")
        if method.extra:
            found.append(f"{method.name}: of no case: {shortened(method.extra, 20)} ({_counted(len(method.extra))}).")
        scores = tables.opens2v[method.name]
        if scores.results:
            total = f"{scores.summary.total:.2%} ({scores.summary.split})" if scores.summary else f"none, {scores.why}"
            found.append(f"{method.name}: total score of OpenS2V-Eval: {total}.")
    found += [f"{METRICS[name].title} was left out: {why}." for name, why in tables.results.skipped.items()]
    return found


def _counted(videos: int) -> str:
    return f"{videos} {'video' if videos == 1 else 'videos'}"


def _notes(tables: Tables, confidence: float) -> list[str]:
    lines = [f"- {_words(note)}" for note in notes(tables, confidence)]
    for method in tables.results.methods:
        for metric in tables.results.metrics:
            count = about_missing(tables, method.name, metric, ALL)
            if count:
                lines.append(
                    f"- {_words(method.name)}, {METRICS[metric].title}: something is missing in {count} videos."
                )
    return lines


def _row(texts: list[str]) -> list[str]:
    return ["| " + " | ".join(_words(text) for text in texts) + " |"]


def _words(text: str) -> str:
    """A text that is no markup, whatever it holds."""
    text = shown(text, 2000).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return text.replace("`", "\\`").replace("](", "]\\(")


def write_csv(tables: Tables, path: Path) -> None:
    """A line for each method and case: every metric's value, empty where it does not apply, and what is missing."""
    results = tables.results
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8", errors="replace") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["method", "case", "track", *results.metrics, "missing"])
        for method in results.methods:
            for case in results.cases:
                values = {name: results.values[method.name][name][case.id] for name in results.metrics}
                missing = "; ".join(f"{name}: {value.missing}" for name, value in values.items() if value.missing)
                numbers = [f"{value.value:.6g}" if value.applies else "" for value in values.values()]
                writer.writerow([_no_formula(method.name), _no_formula(case.id), track_of(case), *numbers, missing])


def _no_formula(text: str) -> str:
    """A text that spreadsheets do not compute."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text
