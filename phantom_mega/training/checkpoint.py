"""Save and resume through megatron's dist_checkpointing: any layout can read what any other wrote.

    <run>/checkpoints/iter_0000100/                  sharded tensors (torch_dist), config.yaml, trainer_state.json
    <run>/checkpoints/latest_checkpointed_iteration.txt
A checkpoint is written under a hidden name and renamed when whole; the text file changes after that.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelLoadStrategyWrapper,
    FullyParallelSaveStrategyWrapper,
)
from megatron.core.dist_checkpointing.strategies.torch import (
    TorchDistLoadShardedStrategy,
    TorchDistSaveShardedStrategy,
)

from phantom_mega.config import RunConfig
from phantom_mega.config_io import load_run_config, to_yaml
from phantom_mega.errors import UserError
from phantom_mega.training.optimizer import reset_moments

LATEST = "latest_checkpointed_iteration.txt"
METADATA = {"distrib_optim_sharding_type": "fully_reshardable"}


def checkpoint_root(run: Path) -> Path:
    """Folder of a run's checkpoints."""
    return run / "checkpoints"


def find_checkpoint(path: str | os.PathLike) -> Path | None:
    """The checkpoint that a path names: a run's folder, its `checkpoints` folder, or one `iter_...` folder.

    Returns:
        The `iter_...` folder, or None where nothing has been saved yet.

    Raises:
        UserError: the text file names a checkpoint that is not there.
    """
    path = Path(path)
    if path.name.startswith("iter_") and (path / "trainer_state.json").is_file():
        return path
    for root in (checkpoint_root(path), path):
        if (root / LATEST).is_file():
            found = root / f"iter_{int((root / LATEST).read_text()):07d}"
            if not (found / "trainer_state.json").is_file():
                raise UserError(f"{root / LATEST} names {found.name}, which is missing or incomplete")
            return found
    return None


def _sharded_state(chunks: list, optimizer, is_loading: bool) -> dict:
    model = {f"model{i}": chunk.sharded_state_dict(metadata=METADATA) for i, chunk in enumerate(chunks)}
    whole = {key: value for part in model.values() for key, value in part.items()} if len(chunks) == 1 else model
    return {**model, "optimizer": optimizer.sharded_state_dict(whole, is_loading=is_loading, metadata=METADATA)}


def _data_parallel_group() -> dist.ProcessGroup:
    return parallel_state.get_data_parallel_group(with_context_parallel=True)


def save_checkpoint(run: Path, iteration: int, chunks: list, optimizer, scheduler, state: dict, config: RunConfig):
    """Write `iter_<iteration>` and name it the latest; a collective call.

    Args:
        run: the run's folder.
        iteration: optimizer steps done.
        chunks: this rank's unwrapped model chunks.
        optimizer: the distributed optimizer (weights' average included).
        scheduler: the learning-rate schedule.
        state: JSON-able state of the trainer (position in the data, guard).
        config: saved with the checkpoint.
    """
    final = checkpoint_root(run) / f"iter_{iteration:07d}"
    temporary = final.with_name(f".{final.name}.saving")
    first = dist.get_rank() == 0
    if first:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    dist.barrier()
    content = _sharded_state(chunks, optimizer, is_loading=False)
    content["scheduler"] = scheduler.state_dict()
    strategy = FullyParallelSaveStrategyWrapper(TorchDistSaveShardedStrategy(), _data_parallel_group())
    dist_checkpointing.save(content, str(temporary), strategy, content_metadata=METADATA)
    dist.barrier()
    if first:
        (temporary / "config.yaml").write_text(to_yaml(config))
        (temporary / "trainer_state.json").write_text(json.dumps({"iteration": iteration, **state}, indent=1))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        latest = final.parent / f"{LATEST}.tmp"
        latest.write_text(str(iteration))
        os.replace(latest, final.parent / LATEST)
    dist.barrier()


def load_checkpoint(path: Path, chunks: list, optimizer, scheduler, config: RunConfig, finetune: bool = False) -> dict:
    """Read a checkpoint of any layout into model, optimizer and schedule; a collective call.

    Args:
        path: an `iter_...` folder.
        chunks: this rank's unwrapped model chunks.
        optimizer: filled in place.
        scheduler: filled in place, unless `finetune`.
        config: its model must be the saved one.
        finetune: keep weights and their average, forget moments, schedule and position.

    Returns:
        The trainer's state as saved; empty with `finetune`.

    Raises:
        UserError: the checkpoint is of another model, or has no EMA where one is wanted.
    """
    check_same_model(path, config)
    content = _sharded_state(chunks, optimizer, is_loading=True)
    strategy = FullyParallelLoadStrategyWrapper(TorchDistLoadShardedStrategy(), _data_parallel_group())
    loaded = dist_checkpointing.load(content, str(path), strategy)
    for i, chunk in enumerate(chunks):
        chunk.load_state_dict(loaded[f"model{i}"])
    keep_schedule(loaded["optimizer"]["optimizer"]["param_groups"], optimizer.param_groups)
    optimizer.load_state_dict(loaded["optimizer"])
    if finetune:
        reset_moments(optimizer)
        return {}
    # The schedule's settings are the recipe's; only its position comes from the checkpoint.
    scheduler.num_steps = 0
    scheduler.step(loaded["scheduler"]["num_steps"])
    return json.loads((path / "trainer_state.json").read_text())


def keep_schedule(saved: list[dict], current: list[dict]) -> None:
    """Give saved parameter groups the learning rates and weight decay of the current recipe.

    megatron recognizes a group by all its settings, so that a checkpoint would not load into a phase with another
    learning rate. Groups differ in `wd_mult` and `lr_mult` alone; those pair them here.

    Args:
        saved: groups of the checkpoint; changed in place, except their `step`.
        current: groups of the optimizer that will read them.
    """

    def kind(group: dict) -> tuple:
        return group.get("wd_mult"), group.get("lr_mult"), group.get("is_expert_parallel")

    settings = {kind(group): group for group in current}
    for group in saved:
        match = settings.get(kind(group), {})
        group.update({name: value for name, value in match.items() if name not in ("params", "step")})


def check_same_model(path: Path, config: RunConfig) -> None:
    """Refuse a checkpoint of another model before any tensor is read.

    Raises:
        UserError: names every field that differs.
    """
    saved = load_run_config(path / "config.yaml")
    differences = [
        f"model.{name}: {getattr(saved.model, name)!r} saved, {value!r} asked for"
        for name, value in vars(config.model).items()
        if getattr(saved.model, name) != value and name not in _FREE
    ]
    if differences:
        raise UserError(f"{path} holds another model: {'; '.join(differences)}")
    if config.train.ema_decay > 0 and saved.train.ema_decay == 0:
        raise UserError(f"{path} holds no EMA; set train.ema_decay=0 or start from another checkpoint")


# Fields that change what attention sees, not which tensors there are: phases may differ in them.
_FREE = {
    "window_frames", "window_height", "window_width", "window_shift", "reference_injection", "max_references",
    "norm_epsilon", "rope_theta",
}  # fmt: skip
