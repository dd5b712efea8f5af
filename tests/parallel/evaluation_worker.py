"""Runs on every rank: whole runs with evaluation at several layouts, and whether averages are put together right."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from phantom_mega.checkpoint.folder import checkpoint_root
from phantom_mega.checkpoint.plain import plain_weights
from phantom_mega.checkpoint.reader import CheckpointReader
from phantom_mega.config import RunConfig
from phantom_mega.core.convert import core_to_hf
from phantom_mega.training.optimizer import averages
from phantom_mega.training.trainer import Trainer
from tests.reliability.worker import run_case


def train(config: RunConfig, case: dict) -> dict:
    """Train with evaluation; compare the averages with those of the checkpoint, which megatron has put together."""
    trainer = Trainer(config)
    code = trainer.train()
    found = core_to_hf(trainer.chunks, averages(trainer.optimizer), all_ranks=True, dtype=torch.float32)
    reader = CheckpointReader(checkpoint_root(Path(config.train.save)) / f"iter_{trainer.iteration:07d}")
    saved = dict(plain_weights(reader, config.model.num_attention_heads, "ema"))
    equal = saved.keys() == found.keys() and all(torch.equal(found[name], saved[name]) for name in saved)
    flags = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(flags, equal)
    held_out, samples = trainer.evaluation.held_out, trainer.evaluation.samples
    packs = [len(held_out.packs), len(held_out.microbatches(0.5))]
    return {"code": code, "averages_equal": all(flags), "ranks": samples.ranks, "packs": packs}


def main(folder: Path, arguments: list[str]) -> None:
    """Run the cases of a file, in order."""
    torch.set_num_threads(1)
    cases = json.loads(Path(arguments[0]).read_text())
    results = {case["run"]: run_case(folder, case, train) for case in cases}
    if torch.distributed.get_rank() == 0:
        (folder / "results.json").write_text(json.dumps(results))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
