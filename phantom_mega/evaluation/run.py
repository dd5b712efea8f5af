"""Measure: metrics stage by stage, videos one by one; resumable, and spread over processes.

A task is a metric of a video. Equal digests are one task: what several folders share is measured once.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from phantom_mega.errors import SetupError, UserError
from phantom_mega.evaluation.config import EvaluationConfig
from phantom_mega.evaluation.metric import Item, Measured, Metric
from phantom_mega.evaluation.records import Record, RecordWriter, digest
from phantom_mega.evaluation.registry import METRICS, release, stages
from phantom_mega.evaluation.videos import Method, case_digest, read_item
from phantom_mega.files import digest_of
from phantom_mega.generation.cases import Case
from phantom_mega.processes import end_with_parent

POLL_SECONDS = 0.2


class WorkerError(RuntimeError):
    """A process died; what it measured is kept."""


@dataclass(frozen=True)
class Task:
    """A video to measure.

    Attributes:
        case: that it shows.
        path: of the video.
        digests: of each metric to measure, by its name.
    """

    case: Case
    path: Path
    digests: dict[str, str] = field(default_factory=dict)

    def without(self, metrics: Collection[str]) -> Task:
        """The task with fewer metrics."""
        return Task(self.case, self.path, {name: key for name, key in self.digests.items() if name not in metrics})


def plan(methods: Sequence[Method], cases: Sequence[Case], config: EvaluationConfig) -> list[Task]:
    """A task for each case and folder that has its video, cases in their order.

    Raises:
        UserError: a reference or a video's bytes cannot be read.
    """
    wanted = {name: getattr(config, name) for name in config.evaluation.metrics}
    tasks = []
    for case in tqdm(cases, desc="files", unit="case", leave=False, disable=None):
        of_case = case_digest(case)
        for method in methods:
            path = method.videos.get(case.id)
            if path is None:
                continue
            try:
                of_video = digest_of(path)
            except OSError as error:
                raise UserError(f"{path} cannot be read: {error.strerror}") from None
            digests = {name: digest(name, settings, of_video, of_case) for name, settings in wanted.items()}
            tasks.append(Task(case, path, digests))
    return tasks


def left(tasks: Sequence[Task], records: dict[str, dict[str, Record]]) -> list[Task]:
    """What is to be measured: without what was, and each digest once. What failed is tried again."""
    found, taken = [], set()
    for task in tasks:
        todo = {}
        for name, key in task.digests.items():
            known = records[name].get(key)
            if (known is None or known.measured is None) and key not in taken:
                taken.add(key)
                todo[name] = key
        if todo:
            found.append(Task(task.case, task.path, todo))
    return found


def unavailable(config: EvaluationConfig, names: Sequence[str]) -> dict[str, str]:
    """Metrics that cannot be loaded, and why. Models are loaded one after another on the CPU, and forgotten.

    Args:
        config: with their settings.
        names: of metrics.
    """
    found = {}
    _quiet()
    for stage in tqdm(stages(names), desc="models", unit="stage", leave=False, disable=None):
        for name in stage:
            try:
                logging.disable(logging.ERROR)  # open_clip logs what it raises, too
                METRICS[name].build(getattr(config, name), "cpu")
            except UserError as error:
                found[name] = str(error)
            finally:
                logging.disable(logging.NOTSET)
        _release()
    return found


def explain_unavailable(found: dict[str, str], names: Sequence[str]) -> str:
    """One message for metrics that cannot be loaded.

    Args:
        found: of `unavailable`.
        names: of all metrics that were asked for.
    """
    others = [name for name in names if name not in found]
    choose = f"choose metrics with --metrics {','.join(others)}, or " if others else ""
    lines = [f"{len(found)} of {len(names)} metrics cannot be measured, for their models are not there:"]
    lines += [f"  {name}: {reason}" for name, reason in found.items()]
    return "\n".join([*lines, f"Get the models (docs/evaluation.md), {choose}leave these out with --skip-missing."])


def _quiet() -> None:
    """Keep transformers' bars of weights out of the way; those of downloads stay."""
    transformers_logging.disable_progress_bar()


def _release() -> None:
    release()
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def measure(
    tasks: Sequence[Task],
    config: EvaluationConfig,
    device: torch.device,
    writer: RecordWriter,
    done: Callable[[], None],
) -> None:
    """Measure all tasks in this process.

    Args:
        tasks: of `left`.
        config: with the metrics' settings.
        device: where models compute.
        writer: takes the records.
        done: called after each record.

    Raises:
        UserError: a model cannot be loaded, or a mistake that every video would meet.
    """
    _quiet()
    for stage in stages(config.evaluation.metrics):
        todo = [task for task in tasks if any(name in task.digests for name in stage)]
        used = {name for task in todo for name in task.digests}
        metrics = {name: METRICS[name].build(getattr(config, name), device) for name in stage if name in used}
        for task in todo:
            names = [name for name in stage if name in task.digests]
            for name, record in _records(task, {name: metrics[name] for name in names}):
                writer.write(name, record)
                done()
        metrics.clear()
        _release()


def _records(task: Task, metrics: dict[str, Metric]) -> list[tuple[str, Record]]:
    """Records of a video. One that cannot be read has the worst value."""
    try:
        item = read_item(task.case, task.path)
    except UserError as error:
        worst = {name: Measured(METRICS[name].worst, str(error)) for name in metrics}
        return [(name, Record(task.digests[name], task.case.id, worst[name])) for name in metrics]
    return [(name, _record(task, name, metric, item)) for name, metric in metrics.items()]


def _record(task: Task, name: str, metric: Metric, item: Item) -> Record:
    key, id = task.digests[name], task.case.id
    try:
        measured = metric.measure(item)
        if not math.isfinite(measured.value):
            raise UserError(f"the value is {measured.value}; try {name}.dtype=float32")
        return Record(key, id, measured)
    except SetupError:
        raise  # every other video would fail alike
    except Exception as error:
        if not isinstance(error, UserError):
            tqdm.write("".join(traceback.format_exception(error)), file=sys.stderr)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return Record(key, id, None, reason if isinstance(error, UserError) else f"{type(error).__name__}: {reason}")


def measure_share(
    tasks: Sequence[Task], config: EvaluationConfig, device: torch.device, writer: RecordWriter, shown: bool = True
) -> None:
    """`measure` with a progress bar, if it is shown."""
    with _bar(tasks, shown) as bar:
        measure(tasks, config, device, writer, bar.update)


def _bar(tasks: Sequence[Task], shown: bool = True) -> tqdm:
    total = sum(len(task.digests) for task in tasks)
    return tqdm(total=total, desc="measured", unit="value", disable=None if shown else True)


# -- several processes


def find_devices(first: torch.device, workers: int | None) -> list[torch.device]:
    """Where each process of this machine computes.

    Args:
        first: as the command line says.
        workers: processes; by default one for each GPU, one without.

    Raises:
        UserError: there is to be no process.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers}; it must be at least 1")
    gpus = torch.cuda.device_count() if first.type == "cuda" else 0
    count = workers or max(1, gpus)
    return [torch.device("cuda", i % gpus) if gpus else first for i in range(count)]


def measure_on_workers(
    tasks: Sequence[Task],
    config: EvaluationConfig,
    devices: Sequence[torch.device],
    output: Path,
) -> None:
    """Measure all tasks on processes of this machine, which take tasks in turn.

    Args:
        tasks: of `left`.
        config: with the metrics' settings.
        devices: where each process computes; one alone is this process.
        output: folder of records.

    Raises:
        UserError: see `measure`.
        WorkerError: a process died.
    """
    workers = min(len(devices), max(1, len(tasks)))
    if workers == 1:
        measure_share(tasks, config, devices[0], RecordWriter(output, 0))
        return
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    counter, errors = context.Value("q", 0), context.SimpleQueue()
    threads = max(1, (os.cpu_count() or 1) // workers)
    processes = [
        context.Process(
            target=_work,
            args=(os.getpid(), tasks[rank::workers], config, devices[rank], output, rank, threads, counter, errors),
        )
        for rank in range(workers)
    ]
    with _bar(tasks) as bar, _ended(processes):
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):
            time.sleep(POLL_SECONDS)
            bar.update(counter.value - bar.n)
            if any(process.exitcode for process in processes):
                break
        bar.update(counter.value - bar.n)
    if not errors.empty():
        raise UserError(errors.get())
    for rank, process in enumerate(processes):
        if process.exitcode:
            how = f"signal {-process.exitcode}" if process.exitcode < 0 else f"exit code {process.exitcode}"
            raise WorkerError(f"worker {rank} died ({how}); the same command goes on with what is left")


@contextlib.contextmanager
def _ended(processes: Sequence[multiprocessing.Process]):
    """When the block ends before the processes do, those that did not fail are stopped."""
    try:
        yield
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()  # lines are whole; nothing else needs an end
                process.join()


def _work(parent: int, tasks, config, device, output, rank, threads, counter, errors) -> None:
    """A worker's life."""
    end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says so, and ends this process
    torch.set_num_threads(threads)

    def done() -> None:
        with counter.get_lock():
            counter.value += 1

    try:
        measure(tasks, config, device, RecordWriter(output, rank), done)
    except UserError as error:
        errors.put(str(error))
        sys.exit(2)
