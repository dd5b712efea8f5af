"""Save and resume through megatron's dist_checkpointing: any layout can read what any other wrote.

What stands on disk, and how it is published whole, is in `phantom_mega.checkpoint`; here is what goes in and comes out.
Every function is a collective call: all ranks come to the same answer, also about errors.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelLoadStrategyWrapper,
    FullyParallelSaveStrategyWrapper,
)
from megatron.core.dist_checkpointing.strategies.torch import (
    TorchDistLoadShardedStrategy,
    TorchDistSaveShardedStrategy,
)
from torch.distributed.checkpoint.api import CheckpointException

from phantom_mega.checkpoint import folder, integrity, safe
from phantom_mega.config import RunConfig
from phantom_mega.config_io import load_run_config, to_yaml
from phantom_mega.core import fp8
from phantom_mega.errors import UserError
from phantom_mega.processes import end_with_parent
from phantom_mega.training.collective import everywhere, on_first_rank
from phantom_mega.training.optimizer import reset_average, reset_moments

METADATA = {"distrib_optim_sharding_type": "fully_reshardable"}


# -- finding


def choose_checkpoint(path: Path, *, hashes: bool, own: bool, say: Callable[[str], None] = print) -> Path | None:
    """The newest good checkpoint that a path names.

    Args:
        path: a run's folder, its `checkpoints` folder, or one `iter_...` folder.
        hashes: verify the digest of every file, the work divided over the ranks; False compares sizes alone.
        own: it is this run's folder: damaged checkpoints are hidden and the text file is set back to the good one.
        say: gets one line for each checkpoint that is passed over.

    Returns:
        None where nothing has been saved yet.

    Raises:
        UserError: there are checkpoints, but none is good.
    """
    damaged: list[tuple[Path, list[str]]] = []
    for candidate in on_first_rank(lambda: folder.candidates(path)):
        problems = _verify(candidate, hashes)
        if not problems:
            if own and damaged:
                on_first_rank(lambda good=candidate: _set_aside([bad for bad, _ in damaged], good))
            return candidate
        say(f"{candidate} is damaged: {'; '.join(problems[:5])}" + (" ..." if len(problems) > 5 else ""))
        damaged.append((candidate, problems))
    if damaged:
        listed = "; ".join(f"{bad.name}: {problems[0]}" for bad, problems in damaged)
        raise UserError(f"{path} holds no good checkpoint ({listed}); restore one from a copy, or name another folder")
    return None


def _verify(candidate: Path, hashes: bool) -> list[str]:
    own = integrity.verify(candidate, hashes=hashes, share=dist.get_rank(), shares=dist.get_world_size())
    gathered: list[list[str]] = [[]] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    return [problem for part in gathered for problem in part]


def _set_aside(damaged: list[Path], good: Path) -> None:
    for bad in damaged:
        folder.set_aside(bad, folder.iteration_of(good))


# -- saving


def _sharded_state(chunks: list, optimizer, is_loading: bool) -> dict:
    """Megatron's sharded state of weights and, unless `optimizer` is None, of the optimizer."""
    metadata = dict(METADATA)  # megatron puts process groups into it
    model = {f"model{i}": chunk.sharded_state_dict(metadata=metadata) for i, chunk in enumerate(chunks)}
    for part in model.values():
        fp8.save_scales_as_tensors(part)
    if optimizer is None:
        return model
    whole = {key: value for part in model.values() for key, value in part.items()} if len(chunks) == 1 else model
    return {**model, "optimizer": optimizer.sharded_state_dict(whole, is_loading=is_loading, metadata=metadata)}


def _data_parallel_group() -> dist.ProcessGroup:
    return parallel_state.get_data_parallel_group(with_context_parallel=True)


def _write_and_hash(write: Callable, parent: int | None, temporary: Path, rank: int, buckets: list, results) -> None:
    """Write this rank's files, then leave their digests; runs in a forked process of its own where `parent` is set."""
    if parent is not None:
        end_with_parent(parent)
    write(rank, buckets, results)
    with contextlib.suppress(OSError):  # a digest that is missing is computed when the checkpoint is published
        integrity.write_part(temporary, [name for _, name, _ in buckets], rank)


class CheckpointSaver:
    """Writes a run's checkpoints, in the background if wanted, publishes them whole, and removes old ones.

    Args:
        run: the run's folder.
        config: saved with every checkpoint; `train.async_save`, `train.most_recent_k` and `train.save_retain_interval`
            are read.
        say: gets one line for each checkpoint that is published.
    """

    def __init__(self, run: Path, config: RunConfig, say: Callable[[str], None] = print):
        self.root, self.config, self.say = folder.checkpoint_root(run), config, say
        self.seconds = 0.0
        self._tag = everywhere(uuid.uuid4().hex[:8])
        self._queue = AsyncCallsQueue(persistent=False)
        self._pending: Path | None = None
        self._cleaned = False

    def save(self, iteration: int, chunks: list, optimizer, scheduler, state: dict) -> None:
        """Write `iter_<iteration>`; with `async_save` returns once the tensors are copied (see `poll`).

        Args:
            iteration: optimizer steps done.
            chunks: this rank's unwrapped model chunks.
            optimizer: the distributed optimizer (weights' average included).
            scheduler: the learning-rate schedule.
            state: JSON-able state of the trainer (position in the data, guard).

        Raises:
            UserError: it could not be written, or the one before; older checkpoints are untouched.
        """
        self.wait()
        started = time.monotonic()
        temporary = on_first_rank(lambda: self._open(iteration))
        content = _sharded_state(chunks, optimizer, is_loading=False)
        content["scheduler"] = scheduler.state_dict()
        strategy = FullyParallelSaveStrategyWrapper(TorchDistSaveShardedStrategy(), _data_parallel_group())
        request = dist_checkpointing.save(
            content, str(temporary), strategy, async_sharded_save=True, async_strategy="mcore",
            content_metadata=METADATA,
        )  # fmt: skip
        background = self.config.train.async_save
        if request.async_fn is not None:
            parent = os.getpid() if background else None
            request = request._replace(async_fn=functools.partial(_write_and_hash, request.async_fn, parent, temporary))
        descriptions = {
            "config.yaml": to_yaml(self.config),
            folder.STATE: json.dumps({"iteration": iteration, **state}, indent=1),
        }
        request.add_finalize_fn(lambda: on_first_rank(lambda: self._publish(temporary, iteration, descriptions)))
        self._pending = temporary
        if background:
            self._guarded(lambda: self._queue.schedule_async_request(request))
        else:
            self._guarded(request.execute_sync)
            self._done(temporary)
        self.seconds = time.monotonic() - started

    def poll(self) -> None:
        """Publish a checkpoint whose files are written by now; call it once an iteration.

        Raises:
            UserError: it could not be written.
        """
        self._finalize(blocking=False)

    def wait(self) -> None:
        """Publish the checkpoint that is being written, if any; returns when it is done.

        Raises:
            UserError: it could not be written.
        """
        self._finalize(blocking=True)

    def _finalize(self, blocking: bool) -> None:
        if self._queue.get_num_unfinalized_calls():
            temporary = self._pending
            if self._guarded(lambda: self._queue.maybe_finalize_async_calls(blocking=blocking)):
                self._done(temporary)

    def _done(self, temporary: Path) -> None:
        self._pending = None
        self.say(f"saved {self.root / temporary.name[1:].partition('.')[0]}")

    def _guarded(self, function: Callable) -> object:
        """Run a part of a save; turn its failure into one message, and remove what was written."""
        try:
            return function()
        except (CheckpointException, OSError, UserError) as error:
            failure, temporary, self._pending = error, self._pending, None
        raise UserError(on_first_rank(lambda: self._why(failure, temporary)))

    def _why(self, error: Exception, temporary: Path) -> str:
        free = shutil.disk_usage(self.root).free
        written = sum(path.stat().st_size for path in temporary.iterdir())
        shutil.rmtree(temporary, ignore_errors=True)
        full = (isinstance(error, OSError) and error.errno == errno.ENOSPC) or free < max(written // 20, 1 << 20)
        reason = f"the disk is full ({free / 1e6:.0f} MB free)" if full else str(error).strip().splitlines()[-1]
        return (
            f"the checkpoint {temporary.name[1:].partition('.')[0]} could not be written to {self.root}: {reason}; "
            "older checkpoints are untouched. Make room (or lower train.most_recent_k) and start the run again"
        )

    def _open(self, iteration: int) -> Path:
        if not self._cleaned:
            folder.remove_leftovers(self.root)
            self._cleaned = True
        return folder.open_temporary(self.root, iteration, self._tag)

    def _publish(self, temporary: Path, iteration: int, descriptions: dict[str, str]) -> None:
        for name, text in descriptions.items():
            (temporary / name).write_text(text)
        integrity.write_manifest(temporary)
        folder.publish(temporary, iteration)
        train = self.config.train
        folder.apply_retention(self.root, train.most_recent_k, train.save_retain_interval)


# -- loading


def load_checkpoint(path: Path, chunks: list, optimizer, scheduler, config: RunConfig, finetune: bool = False) -> dict:
    """Read a checkpoint of any layout into model, optimizer and schedule.

    Args:
        path: an `iter_...` folder (`choose_checkpoint`).
        chunks: this rank's unwrapped model chunks.
        optimizer: filled in place.
        scheduler: filled in place, unless `finetune`.
        config: its model must be the saved one.
        finetune: keep weights and their average, forget moments, schedule and position.

    Returns:
        The trainer's state as saved; empty with `finetune`.

    Raises:
        UserError: the checkpoint is of another model, has no EMA where one is wanted, holds the model alone where a
            run is to be resumed, or would need unsafe unpickling.
    """
    check_same_model(path, config)
    # Before megatron reads it: torch unpickles `.metadata` and byte items without asking.
    on_first_rank(lambda: safe.check(path))
    state = json.loads((path / folder.STATE).read_text())
    model_only = state.get("content") == "model"
    if model_only and not finetune:
        raise UserError(f"{path} holds the model alone; start from it with train.finetune=true")
    content = _sharded_state(chunks, None if model_only else optimizer, is_loading=True)
    strategy = FullyParallelLoadStrategyWrapper(TorchDistLoadShardedStrategy(), _data_parallel_group())
    loaded = dist_checkpointing.load(content, str(path), strategy)
    for i, chunk in enumerate(chunks):
        chunk.load_state_dict(fp8.restore_scales(chunk, loaded[f"model{i}"]))
    if model_only:
        optimizer.reload_model_params()
        reset_average(optimizer)
    else:
        keep_schedule(loaded["optimizer"]["optimizer"]["param_groups"], optimizer.param_groups)
        optimizer.load_state_dict(loaded["optimizer"])
    if finetune:
        reset_moments(optimizer)
        return {}
    # The schedule's settings are the recipe's; only its position comes from the checkpoint.
    scheduler.num_steps = 0
    scheduler.step(loaded["scheduler"]["num_steps"])
    return state


def keep_schedule(saved: list[dict], current: list[dict]) -> None:
    """Give saved parameter groups the learning rates and weight decay of the current recipe.

    megatron recognizes a group by all its settings, so that a checkpoint would not load into a phase with another
    learning rate. Groups differ in `wd_mult` and `lr_mult` alone; those pair them here. The step count becomes an
    integer: torch's AdamW saves a float, which fused optimizers do not take.

    Args:
        saved: groups of the checkpoint; changed in place.
        current: groups of the optimizer that will read them.
    """

    def kind(group: dict) -> tuple:
        return group.get("wd_mult"), group.get("lr_mult"), group.get("is_expert_parallel")

    settings = {kind(group): group for group in current}
    for group in saved:
        match = settings.get(kind(group), {})
        group.update({name: value for name, value in match.items() if name not in ("params", "step")})
        if "step" in group:
            group["step"] = int(group["step"])


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
