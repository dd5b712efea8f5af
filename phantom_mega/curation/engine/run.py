"""All parts of all stages on Ray Data: here, or on the cluster that RAY_ADDRESS names.

A part that is there and was made of the same inputs and settings is left alone, so that running again goes on where a
run ended, however it did.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from phantom_mega.curation.engine.part import PartRunner, Summary, count, decode, encode
from phantom_mega.curation.engine.stage import INPUT, Stage, verdict
from phantom_mega.curation.engine.tables import completed, split, split_table
from phantom_mega.errors import UserError
from phantom_mega.files import UNFINISHED

REPOSITORY = Path(__file__).resolve().parents[3]


@dataclass
class Result:
    """What a run of a stage did.

    Attributes:
        stage: its name.
        parts_made: of the parts, those that were not there yet.
        rows, accepted: of the parts that were made.
        made: input rows that were computed, not known from before.
        seconds: of the run.
        busy: seconds of all workers together, without their start.
        reasons: of rejected rows in the parts that were made.
    """

    stage: str
    parts_made: int = 0
    rows: int = 0
    accepted: int = 0
    made: int = 0
    seconds: float = 0.0
    busy: float = 0.0
    reasons: Counter = field(default_factory=Counter)

    def add(self, summary: Summary) -> None:
        """Count a part."""
        self.parts_made += 1
        self.rows, self.accepted = self.rows + summary.rows, self.accepted + summary.accepted
        self.made += summary.made
        self.busy += summary.seconds
        self.reasons += summary.reasons

    def line(self) -> str:
        """For people."""
        if not self.parts_made:
            return f"{self.stage}: done before"
        rate = f", {self.made / self.seconds:.3g} rows/s" if self.seconds and self.made else ""
        why = ", ".join(f"{reason} {n:,}" for reason, n in self.reasons.most_common(6))
        rejected = f"; rejected: {why}" if why else ""
        return f"{self.stage}: {self.accepted:,} of {self.rows:,} rows accepted in {self.seconds:.1f} s{rate}{rejected}"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second run out of a folder; what a killed one left half-written there is removed.

    Raises:
        UserError: there is one, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+")
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error.strerror or error}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another run is at work in {folder}; wait for it, or choose another folder") from None
        file.seek(0)
        if file.read():  # a run that ends by itself, however it ends, empties it
            for leftover in folder.rglob(f".*{UNFINISHED}"):
                leftover.unlink(missing_ok=True)
        file.write("running\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


@contextlib.contextmanager
def ray_session(num_cpus: int | None = None) -> Iterator[None]:
    """A Ray of this process alone, or the cluster that RAY_ADDRESS names."""
    # Ray Data draws bars of its own, warns about what does not concern users, and reports usage over the network.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    variables = {"PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))}
    settings = {"runtime_env": {"env_vars": variables}, "logging_level": logging.ERROR, "include_dashboard": False}
    if os.environ.get("RAY_ADDRESS"):
        del settings["include_dashboard"]
    else:  # "local": not the cluster that somebody else has started on this machine
        settings |= {"num_cpus": num_cpus, "address": "local"}
    ray.init(log_to_driver=False, **settings)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    for handler in logging.getLogger("ray.data").handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


class _Worker:
    """A PartRunner as Ray Data wants it."""

    def __init__(self, *arguments):
        self.runner = PartRunner(*arguments)

    def __call__(self, row: dict) -> dict:
        try:
            return {"summary": self.runner(int(row["part"])), "error": ""}
        except UserError as error:  # Ray would bury it under three others
            return {"summary": None, "error": str(error)}


def run_stage(stage: Stage, folder: Path, parts: int, retry: bool = False, quiet: bool = False) -> Result:
    """Run a stage where it is not done; within `ray_session`, unless it is `whole` or a source.

    Args:
        stage: to run.
        folder: of all stages' tables.
        parts: of each table.
        retry: make rows again that failed.
        quiet: no bar.

    Raises:
        UserError: an input is missing or damaged, or the disk is full.
    """
    runner = PartRunner(stage, folder, parts, uuid.uuid4().hex, retry)
    result, started = Result(stage.name), time.monotonic()
    if stage.source or stage.whole:
        _run_at_once(runner, parts, result)
    else:
        todo = [part for part in range(parts) if not runner.is_done(part)]
        for part in set(range(parts)).difference(todo):
            runner.remove_leftover(part)
        with tqdm(total=len(todo), desc=stage.name, unit=" parts", disable=quiet or not todo, file=sys.stderr) as bar:
            for summary in _on_ray(runner, folder, parts, todo):
                result.add(summary)
                for failure in summary.failures[:1]:
                    bar.write(f"{stage.name}: a row failed and is recorded as such\n{failure}", file=sys.stderr)
                bar.update()
                bar.set_postfix(rows=result.rows, accepted=result.accepted)
    result.seconds = time.monotonic() - started
    return result


def _on_ray(runner: PartRunner, folder: Path, parts: int, todo: Sequence[int]) -> Iterator[Summary]:
    if not todo:
        return
    import ray

    stage = runner.stage
    limit = stage.concurrency or _places(stage)
    made = ray.data.from_items([{"part": part} for part in todo], override_num_blocks=len(todo)).map(
        _Worker,
        fn_constructor_args=(stage, folder, parts, runner.run, runner.retry),
        num_cpus=stage.num_cpus,
        num_gpus=stage.num_gpus or None,
        # One part at a time: a second one would wait at a busy worker while another is idle.
        compute=ray.data.ActorPoolStrategy(size=min(limit, len(todo)), max_tasks_in_flight_per_actor=1),
    )
    for row in made.iter_rows():
        if row["error"]:
            raise UserError(row["error"])
        yield row["summary"]


def _places(stage: Stage) -> int:
    """How many workers of a stage find a place in the cluster."""
    import ray

    there = ray.cluster_resources()
    fits = [there.get(name, 0) / each for name, each in (("CPU", stage.num_cpus), ("GPU", stage.num_gpus)) if each]
    if not fits or min(fits) < 1:
        raise UserError(
            f"stage {stage.name} needs {stage.num_cpus:g} CPU(s) and {stage.num_gpus:g} GPU(s) for a worker, and there "
            f"are {there.get('CPU', 0):g} and {there.get('GPU', 0):g}"
        )
    return int(min(fits))


def _run_at_once(runner: PartRunner, parts: int, result: Result) -> None:
    """A stage that sees all rows, or makes the first ones."""
    stage = runner.stage
    digest = hashlib.sha256(b"".join(runner.made_from(part) for part in range(parts))).hexdigest().encode()
    if stage.whole:
        stamps = [runner.table.stamp(part) for part in range(parts)]
        if all(stamp is not None and stamp[0] == digest for stamp in stamps):
            return
        process = stage.open(stage.settings)
        rows = process({name: table.read(stage.inputs[name], accepted=True) for name, table in runner.inputs.items()})
    else:
        rows = list(stage.source(stage.settings))
    if isinstance(rows, pa.Table):
        _write_table(runner, rows, parts, result, digest)
        return
    rows = [{**verdict({}, None), INPUT: bytes(16)} | row for row in rows]
    for part, members in enumerate(split(rows, stage, parts)):
        # Through JSON, as every other row.
        runner.table.write(part, [decode(encode(row)) for row in members], stage.schema, digest)
        summary = Summary(part, made=len(members))
        count(summary, members)
        result.add(summary)


def _write_table(runner: PartRunner, table: pa.Table, parts: int, result: Result, digest: bytes) -> None:
    """The rows of a whole stage that are a table."""
    stage = runner.stage
    for part, members in enumerate(split_table(completed(table, stage), stage, parts)):
        runner.table.write_table(part, members, digest)
        summary = Summary(part, len(members), made=len(members))
        rejected = members.filter(pc.invert(members["accepted"]))["reason"]
        summary.accepted = len(members) - len(rejected)
        summary.reasons = Counter({entry["values"]: entry["counts"] for entry in rejected.value_counts().to_pylist()})
        result.add(summary)
