"""Runs on every rank: several whole runs of the trainer in one start, each with its own layout, signals and faults."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from megatron.core import parallel_state
from torch.distributed import distributed_c10d

from phantom_mega.config import RunConfig
from phantom_mega.config_io import load_run_config
from phantom_mega.errors import UserError
from phantom_mega.training.trainer import Trainer, prepare
from tests.training.conftest import BASE


def send_signal(trainer: Trainer, number: int, iteration: int) -> None:
    """A real signal to this process once the iteration is done."""

    def wait() -> None:
        while trainer.iteration < iteration:
            time.sleep(0.001)
        os.kill(os.getpid(), number)

    threading.Thread(target=wait, daemon=True).start()


def inject(trainer: Trainer, factors: dict[str, float]) -> None:
    """Multiply the targets of some iterations by a factor (nan, or a large number for a spike)."""
    take = trainer.source.next

    def next_with_fault():
        data = take()
        factor = factors.get(str(trainer.iteration + 1))
        if factor is not None:
            for batch in data.batches:
                batch.target.mul_(factor)
        return data

    trainer.source.next = next_with_fault


def watch_weights(trainer: Trainer, seen: dict[int, float]) -> None:
    """Note a sum over the weights after every iteration."""
    step = trainer.step

    def step_and_sum():
        metrics = step()
        weights = [p.detach().double() for chunk in trainer.chunks for p in chunk.parameters()]
        seen[metrics.iteration] = float(sum((w * torch.arange(1, w.numel() + 1).view(w.shape)).sum() for w in weights))
        return metrics

    trainer.step = step_and_sum


def run_case(folder: Path, case: dict, train: Callable[[RunConfig, dict], dict] | None = None) -> dict:
    """One run; returns what the test reads: what `train` gives, `train_case` by default."""
    words = [*BASE[2:], *case["overrides"], f"train.save={folder / case['run']}"]
    config = prepare(load_run_config("tiny_stage1", words))
    result = (train or train_case)(config, case)
    # Not after an error: the other ranks may be in another collective.
    torch.distributed.barrier()
    close_groups()
    return result


def close_groups() -> None:
    """End the process groups of a layout, so that another one can follow."""
    parallel_state.destroy_model_parallel()
    for group in [*distributed_c10d._world.pg_map]:  # each has threads of its own
        if group is not torch.distributed.group.WORLD:
            torch.distributed.destroy_process_group(group)


def train_case(config: RunConfig, case: dict) -> dict:
    """Train as the case says; with `save_first`, save what was loaded before."""
    trainer = Trainer(config)
    weights: dict[int, float] = {}
    if torch.distributed.get_rank() == case.get("signal_rank"):
        send_signal(trainer, case["signal"], case["signal_after"])
    if "inject" in case:
        inject(trainer, case["inject"])
        watch_weights(trainer, weights)
    buckets = [bucket for wrapped in trainer.wrapped for buffer in wrapped.buffers for bucket in buffer.buckets]
    result = {
        "buckets": len(buckets),
        "padded": sum(bucket.grad_data.numel() > bucket.numel_unpadded for bucket in buckets),
        "start": trainer.iteration,
        "weights": weights,
    }
    if case.get("save_first"):
        trainer._saved = None
        trainer.save()
        trainer.saver.wait()
    try:
        return result | {"code": trainer.train(), "stopped_at": trainer.iteration}
    except UserError as error:
        return result | {"error": str(error), "stopped_at": trainer.iteration}


def main(folder: Path, arguments: list[str]) -> None:
    """Run the cases of a file, in order."""
    cases = json.loads(Path(arguments[0]).read_text())
    results = {case["name"]: run_case(folder, case) for case in cases}
    if torch.distributed.get_rank() == 0:
        (folder / "results.json").write_text(json.dumps(results))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
