"""Saves checkpoints until it is killed: `python -m tests.reliability.saver_server FOLDER TRIALS SEED`.

Imports once, then forks a child for every trial. The child writes checkpoints as fast as it can, sync or async, every
value of a checkpoint being its iteration. It is killed with SIGKILL, alone or with its writers, a random time after its
start, after its first checkpoint, or just when a checkpoint is half written, in turn.
Prints one JSON line for each trial: what the folder looked like then, and what was found wrong (nothing, one hopes).
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from phantom_mega.checkpoint import folder as names
from phantom_mega.checkpoint import integrity
from phantom_mega.checkpoint.reader import CheckpointReader
from phantom_mega.config import ModelConfig, OptimizerConfig, RunConfig, TrainConfig
from phantom_mega.core.build import build_model, wrap_ddp
from phantom_mega.core.parallel_config import initialize_distributed
from phantom_mega.training import optimizer as optim
from phantom_mega.training.checkpoint import CheckpointSaver, choose_checkpoint, load_checkpoint

MODEL = ModelConfig(
    num_layers=2, hidden_size=64, num_attention_heads=2, ffn_hidden_size=128, rope_axes_dim=[8, 12, 12],
    latent_channels=8, text_dim=16, clip_dim=16, timestep_dim=32,
)  # fmt: skip

MOMENTS = ("start", "saved", "half")


class Run:
    """A model and its saver, without data: what is saved is set by hand."""

    def __init__(self, folder: Path, **train):
        self.config = RunConfig(
            model=MODEL, optimizer=OptimizerConfig(), train=TrainConfig(train_iters=10**6, save=str(folder), **train)
        )
        config = self.config
        self.chunks = build_model(config.model, config.parallel, config.precision, seed=1)
        self.wrapped = wrap_ddp(self.chunks, self.chunks[0].config, config.parallel)
        self.optimizer = optim.build_optimizer(self.wrapped, config)
        self.scheduler = optim.build_scheduler(self.optimizer, config)
        self.saver = CheckpointSaver(folder, config, say=lambda text: None)

    @torch.no_grad()
    def fill(self, value: float) -> None:
        """Set every weight, moment and average."""
        for parameter in self.chunks[0].parameters():
            parameter.fill_(value)
        for part in self.optimizer.chained_optimizers:
            for parameter, state in part.optimizer.state.items():
                parameter.fill_(value)
                for key in (*optim.MOMENTS, "ema"):
                    state[key].fill_(value)

    def save(self, iteration: int) -> None:
        """Save a checkpoint whose every value is its iteration."""
        self.fill(float(iteration))
        self.saver.save(iteration, self.chunks, self.optimizer, self.scheduler, {"consumed_samples": iteration})

    def load(self, path: Path) -> dict:
        """Read a checkpoint back."""
        return load_checkpoint(path, self.chunks, self.optimizer, self.scheduler, self.config)


def wrong_values(checkpoint: Path) -> list[str]:
    """Tensors of a checkpoint of `Run.save` that do not hold its iteration everywhere."""
    reader, value = CheckpointReader(checkpoint), float(names.iteration_of(checkpoint))
    return [key for key in reader.tensors if not bool((reader.read(key) == value).all())]


def child(folder: Path, background: bool, log: int) -> None:
    """Resume, then save without end, ten iterations apart."""
    os.dup2(log, 1)
    os.dup2(log, 2)
    initialize_distributed(RunConfig().parallel)
    run = Run(folder, async_save=background, most_recent_k=2)
    start = choose_checkpoint(folder, hashes=True, own=True)
    iteration = run.load(start)["iteration"] if start else 0
    (folder / "saving").touch()
    while True:
        iteration += 10
        run.save(iteration)
        run.saver.poll()


def latest_of(folder: Path) -> int:
    """The iteration that `latest` names, or 0."""
    return names.read_latest(names.find_root(folder)) if names.find_root(folder) else 0


def half_written(folder: Path) -> bool:
    """Whether a checkpoint is being written."""
    return any(names.checkpoint_root(folder).glob(".iter_*.saving-*"))


def trial(folder: Path, rng: random.Random, background: bool, group: bool, moment: str, longest: float = 1.0) -> dict:
    """Start a child, kill it, look at what it leaves.

    Args:
        folder: of the run.
        rng: draws the time until the kill.
        background: async saves.
        group: kill its writers too.
        moment: at the `start` of saving, when one is `saved`, or when one is `half` written.
        longest: seconds to wait at most, from the start or the first checkpoint.
    """
    (folder / "saving").unlink(missing_ok=True)
    before = latest_of(folder)
    log = os.open(folder / "child.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    pid = os.fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)
            child(folder, background, log)
        except BaseException:
            import traceback

            os.write(log, traceback.format_exc().encode())
        finally:
            os._exit(1)
    os.close(log)

    def wait_for(condition: Callable[[], bool]) -> None:
        while not condition() and os.waitpid(pid, os.WNOHANG)[0] == 0:
            time.sleep(0.002)

    wait_for((folder / "saving").exists)
    if moment == "saved":
        wait_for(lambda: latest_of(folder) > before)
    time.sleep(rng.uniform(0, longest))
    if moment == "half":
        wait_for(lambda: half_written(folder))
    (os.killpg if group else os.kill)(pid, signal.SIGKILL)
    code = os.waitpid(pid, 0)[1]
    root = names.checkpoint_root(folder)
    hidden = sorted({path.name.split(".")[2].split("-")[0] for path in root.glob(".iter_*")}) if root.exists() else []
    report = {"background": background, "group": group, "killed": os.WTERMSIG(code) == signal.SIGKILL, "left": hidden}
    report["problems"] = problems = []
    if names.find_root(folder):
        latest = names.find_checkpoint(folder)
        report["latest"] = names.iteration_of(latest)
        problems += integrity.verify(latest) + wrong_values(latest)
        problems += ["latest went back"] * (report["latest"] < before)
        newest = names.list_checkpoints(names.find_root(folder))[-1]
        problems += integrity.verify(newest)
    return report


def main() -> None:
    """Run the trials."""
    folder, trials, rng = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(trials):
        report = trial(folder, rng, background=number % 2 == 1, group=number % 4 < 2, moment=MOMENTS[number % 3])
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
