"""The stages in their order, and a run of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from phantom_mega.curation import measures, selection, shots, videos
from phantom_mega.curation.config import CurationConfig
from phantom_mega.curation.engine.run import Result, locked, ray_session, run_stage
from phantom_mega.curation.engine.stage import Stage
from phantom_mega.curation.engine.tables import Table
from phantom_mega.errors import UserError
from phantom_mega.files import whole_file

TABLES = "tables"  # folder below the output
_LAYOUT = "layout.json"


def stages(source: str, config: CurationConfig) -> list[Stage]:
    """All stages, each after those that it reads."""
    return [
        *videos.stages(source, config.videos),
        *shots.stages(config.shots),
        measures.stage(config.measures),
        selection.stage(config.selection),
    ]


def choose(all_stages: list[Stage], only: list[str] | None) -> list[Stage]:
    """The stages that a user names, in their order; all by default.

    Raises:
        UserError: there is no such stage.
    """
    names = [stage.name for stage in all_stages]
    for name in only or []:
        if name not in names:
            raise UserError(f"there is no stage {name!r}; there are {', '.join(names)}")
    return [stage for stage in all_stages if not only or stage.name in only]


def run(
    source: str,
    output: Path,
    config: CurationConfig,
    only: list[str] | None = None,
    retry: bool = False,
    report: Callable[[str], None] = print,
) -> list[Result]:
    """Run stages on an input.

    Args:
        source: folder of videos, a video, or a list of videos.
        output: folder of all that is made; a run that ended early goes on in it.
        config: of all stages.
        only: names of stages to run; those before them must have run.
        retry: make rows again that failed.
        report: prints a line.

    Raises:
        UserError: bad input, a table that is missing or damaged, a full disk.
    """
    chosen = choose(stages(source, config), only)
    folder = output / TABLES
    with locked(output):
        _keep_layout(output, config.engine.parts)
        with ray_session(config.engine.num_cpus or None):
            results = []
            for stage in chosen:
                result = run_stage(stage, folder, config.engine.parts, retry)
                report(result.line())
                results.append(result)
    return results


def parts_of(output: Path) -> int:
    """Number of files of each table of an output.

    Raises:
        UserError: there are no tables.
    """
    path = output / TABLES / _LAYOUT
    if not path.is_file():
        raise UserError(f"{output} is no output of launchers/curate.py: there is no {path}")
    try:
        return int(json.loads(path.read_text())["parts"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged; choose another output, or write the number of parts into it") from None


def _keep_layout(output: Path, parts: int) -> None:
    """Rows lie in parts by their names: another number of parts would look for them elsewhere.

    Raises:
        UserError: the tables have another number of parts.
    """
    path = output / TABLES / _LAYOUT
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps({"parts": parts}) + "\n")
    if (found := parts_of(output)) != parts:
        raise UserError(
            f"{path.parent} has tables of {found} parts; set engine.parts={found}, or choose another output"
        )


def funnel(output: Path, config: CurationConfig, source: str) -> list[tuple[str, int, dict[str, int]]]:
    """(stage, accepted rows, rejected rows by reason) of every stage that has run."""
    found = []
    for stage in stages(source, config):
        table = Table(output / TABLES, stage.name, config.engine.parts)
        if all(table.path(part).is_file() for part in range(table.parts)):
            rows = table.read(["accepted", "reason"])
            counts = rows.filter(rows["reason"].is_valid())["reason"].value_counts().to_pylist()
            reasons = {entry["values"]: entry["counts"] for entry in counts}
            ordered = dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
            found.append((stage.name, rows.num_rows - sum(reasons.values()), ordered))
    return found
