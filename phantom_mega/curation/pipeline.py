"""A run: the stages of a source in their order, then the shards, then the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from phantom_mega.curation.engine.run import Result, locked, ray_session, run_stage
from phantom_mega.curation.engine.stage import Stage
from phantom_mega.curation.report import PAGE_NAME, PICTURE_NAME, Counts, write_report
from phantom_mega.curation.report.counts import count_stages
from phantom_mega.curation.report.reading import Tables
from phantom_mega.curation.report.summary import SHARDS, TABLES, funnel
from phantom_mega.curation.sources import Source
from phantom_mega.curation.write import Written, write_shards
from phantom_mega.errors import UserError
from phantom_mega.files import whole_file

LAST = ("shards", "report")  # steps that are no tables
_LAYOUT = "layout.json"


def choose(stages: list[Stage], only: list[str] | None) -> list[str]:
    """The steps that a user names, in their order; all by default.

    Raises:
        UserError: there is no such step.
    """
    names = [*(stage.name for stage in stages), *LAST]
    for name in only or []:
        if name not in names:
            raise UserError(f"there is no stage {name!r}; there are {', '.join(names)}")
    return [name for name in names if not only or name in only]


# (stage, section, setting): what nobody is named to do by default
_NEEDED = (("captions", "captions", "caption_backend"), ("detections", "detections", "detector"))


def until_nobody(steps: list[str], config) -> tuple[list[str], str]:
    """Steps up to the first one that nobody is named for, with the report; and the setting that would name somebody."""
    for stage, section, setting in _NEEDED:
        settings = getattr(config, section, None)
        if settings is not None and getattr(settings, setting) == "none" and stage in steps:
            return [*steps[: steps.index(stage)], *(name for name in steps if name == "report")], f"{section}.{setting}"
    return steps, ""


def run(
    input_path: str,
    output: Path,
    source: Source,
    config,
    only: list[str] | None = None,
    retry: bool = False,
    say: Callable[[str], None] = print,
) -> list[Result]:
    """Run steps on an input; each is left alone where it is done.

    Args:
        input_path: what the source takes.
        output: folder of all that is made; a run that ended early goes on in it.
        source: kind of the input.
        config: the source's settings.
        only: names of steps to run; those before them must have run.
        retry: make rows again that failed.
        say: prints a line.

    Returns:
        what the run of each stage did.

    Raises:
        UserError: bad input, a table that is missing or damaged, a full disk.
    """
    folder, parts = output / TABLES, config.engine.parts
    stages = source.stages(input_path, config, folder)
    chosen, missing = choose(stages, only), ""
    if not only:
        chosen, missing = until_nobody(chosen, config)
    results = []
    with locked(output):
        _keep_layout(output, parts)
        with ray_session(config.engine.num_cpus or None):
            for stage in stages:
                if stage.name in chosen:
                    results.append(run_stage(stage, folder, parts, retry))
                    say(results[-1].line())
        if "shards" in chosen:
            say(_told(write_shards(folder, parts, output / SHARDS, config.write)))
        if "report" in chosen:
            counts = report(output, stages, config)
            say(f"report: {output / PAGE_NAME}, {output / PICTURE_NAME}")
            for line in counts.totals():
                say(line)
        for line in ["", *funnel(count_stages(Tables(folder, stages, parts)))]:
            say(line)
    if missing:
        say(
            f"stopped before the stage that {missing}=none is for: name who does it (openai, transformers, file), and "
            "run again; what is done is not done again"
        )
    return results


def report(output: Path, stages: list[Stage], config) -> Counts:
    """Write the report of what has run; see `write_report`."""
    pairs = getattr(config, "pairs", None)
    cuts = {} if pairs is None else {
        "cuts": (pairs.min_similarity, pairs.max_similarity),
        "face_cuts": (pairs.min_face_similarity, pairs.max_face_similarity),
    }  # fmt: skip
    return write_report(output, stages, config, config.engine.parts, **cuts)


def _told(written: Written) -> str:
    counts = ", ".join(f"{count:,} {split} samples" for split, count in written.samples.items())
    left_out = "".join(f"; left out: {reason} {count:,}" for reason, count in written.left_out.items())
    return f"shards: {counts}{'' if written.made else ', done before'}{left_out}"


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
