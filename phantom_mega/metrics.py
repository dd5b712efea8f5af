"""The machine-readable record of a run: `metrics.jsonl`, one JSON object per iteration. Needs nothing but Python."""

from __future__ import annotations

import json
import os
from pathlib import Path

from phantom_mega.errors import UserError


def metrics_path(run: Path) -> Path:
    """Where a run's metrics are."""
    return run / "metrics.jsonl"


def evaluations_path(run: Path) -> Path:
    """Where a run's evaluations are: one JSON object for each, as for iterations."""
    return run / "eval.jsonl"


def read_evaluations(run: Path) -> list[dict]:
    """All evaluations of a run, in order; empty where there are none."""
    path = evaluations_path(run)
    return [found for _, found in _read_lines(path)] if path.exists() else []


def read_metrics(run: Path) -> list[dict]:
    """Metrics of every iteration of a run, in order.

    Raises:
        UserError: there is no record, or it is empty.
    """
    path = metrics_path(run)
    metrics = [metrics for _, metrics in _read_lines(path)] if path.exists() else []
    if not metrics:
        raise UserError(f"{run} holds no training record ({path.name} is missing or empty); name a run's folder")
    return metrics


def keep_until(path: Path, iteration: int) -> None:
    """Drop the lines of a metrics file that lie after `iteration`, or are torn: the run will write them again."""
    if not path.exists():
        return
    kept = [line for line, metrics in _read_lines(path) if metrics["iteration"] <= iteration]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    os.replace(temporary, path)


def _read_lines(path: Path) -> list[tuple[str, dict]]:
    """(line, parsed) of every whole line of a metrics file."""
    found = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            found.append((line, json.loads(line)))
        except json.JSONDecodeError:
            continue  # torn by a kill in the middle of a write
    return found
