"""Train arms, several at a time, each as a process of launchers/train.py, resumable as that is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from phantom_mega.checkpoint.folder import find_checkpoint, iteration_of
from phantom_mega.errors import UserError
from phantom_mega.metrics import metrics_path

LAUNCHER = Path(__file__).resolve().parents[2] / "launchers" / "train.py"
POLL_SECONDS = 1.0
LOG = "output.log"


@dataclass(frozen=True)
class Training:
    """One run to train.

    Attributes:
        folder: of the run.
        arguments: of launchers/train.py.
        iterations: of the whole run.
    """

    folder: Path
    arguments: tuple[str, ...]
    iterations: int

    def done(self) -> int:
        """Iterations of which the log tells."""
        path = metrics_path(self.folder)
        return sum(1 for _ in open(path, "rb")) if path.is_file() else 0

    def finished(self) -> bool:
        """Whether the checkpoint of the last iteration is there."""
        found = find_checkpoint(self.folder) if self.folder.is_dir() else None
        return found is not None and iteration_of(found) == self.iterations


def train_all(trainings: Sequence[Training], processes: int, threads: int, device: str) -> None:
    """Train what is not finished; an interruption stops every run after a checkpoint, and the same call goes on.

    Args:
        trainings: the runs.
        processes: how many at a time.
        threads: of each process.
        device: `cpu` hides GPUs from the runs.

    Raises:
        UserError: a run failed; names it and repeats its last words.
    """
    waiting = [training for training in trainings if not training.finished()]
    if not waiting:
        return
    total = sum(training.iterations for training in waiting)
    running: dict[Training, subprocess.Popen] = {}
    unfinished = list(waiting)
    with tqdm(total=total, unit="it", desc=f"train {len(waiting)} runs", file=sys.stderr, disable=None) as bar:
        try:
            while waiting or running:
                while waiting and len(running) < processes:
                    training = waiting.pop(0)
                    running[training] = _start(training, threads, device)
                time.sleep(POLL_SECONDS)
                for training, process in list(running.items()):
                    if process.poll() is None:
                        continue
                    del running[training]
                    if process.returncode != 0:
                        raise UserError(_failure(training, process.returncode))
                bar.n = sum(min(training.done(), training.iterations) for training in unfinished)
                bar.set_postfix_str(", ".join(sorted(training.folder.name for training in running)))
                bar.refresh()
        finally:
            for process in running.values():
                process.send_signal(signal.SIGTERM)
            for process in running.values():
                process.wait()


def _start(training: Training, threads: int, device: str) -> subprocess.Popen:
    training.folder.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads))
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    with open(training.folder / LOG, "ab") as log:
        return subprocess.Popen(
            [sys.executable, str(LAUNCHER), *training.arguments],
            stdout=log, stderr=subprocess.STDOUT, env=environment,
            # Ctrl-C reaches this process alone, which then stops the runs in order.
            start_new_session=True,
        )  # fmt: skip


def _failure(training: Training, code: int) -> str:
    path = training.folder / LOG
    lines = path.read_text(errors="replace").strip().splitlines()[-3:]
    return f"the training {training.folder.name} ended with exit code {code}; {path} ends with: {' | '.join(lines)}"
