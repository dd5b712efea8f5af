"""Runs on every rank: each layout's loss, gradients, steps, initial weights and checkpoints, into results files."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelLoadStrategyWrapper,
    FullyParallelSaveStrategyWrapper,
)
from megatron.core.dist_checkpointing.strategies.torch import TorchDistLoadShardedStrategy, TorchDistSaveShardedStrategy

from phantom_mega.config import ParallelConfig, PrecisionConfig
from phantom_mega.core.build import build_model, build_optimizer, sync_parameters, wrap_ddp
from phantom_mega.core.convert import core_to_hf, load_hf
from phantom_mega.core.parallel_config import initialize_distributed
from phantom_mega.core.schedule import StepStats, forward_backward
from tests.parallel import reference
from tests.parallel.layouts import BF16_LAYOUTS, LAYOUTS

FP32, BF16 = reference.FP32, PrecisionConfig(bf16=True)


def own_batches(step: int) -> list:
    """This data-parallel rank's microbatches: every dp-th of the global batch."""
    rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    return reference.microbatches(step)[rank::size]


@contextlib.contextmanager
def counted_exchanges() -> Iterator[list[float]]:
    """Numbers that each all-to-all inside this context sends to other ranks."""
    exchange, sent = torch.distributed.all_to_all_single, []

    def counting(output, tensor, *args, group, **kwargs):
        sent.append(tensor.numel() * (group.size() - 1) / group.size())
        return exchange(output, tensor, *args, group=group, **kwargs)

    torch.distributed.all_to_all_single = counting
    try:
        yield sent
    finally:
        torch.distributed.all_to_all_single = exchange


def complete_gradient_shards(wrapped: list) -> None:
    """Put the shards that reduce-scatter left on the data-parallel ranks together, in every rank's `main_grad`."""
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    for chunk in wrapped:
        for bucket in (bucket for buffer in chunk.buffers for bucket in buffer.buckets):
            shard = bucket.grad_data.chunk(group.size())[group.rank()].clone()
            torch.distributed.all_gather_into_tensor(bucket.grad_data, shard, group=group)


class Training:
    """Model, DDP and optimizer of one layout, and the iterations of the reference."""

    def __init__(self, parallel: ParallelConfig, precision: PrecisionConfig = FP32):
        chunks = build_model(reference.MODEL, parallel, precision, seed=1)
        self.config = chunks[0].config
        load_hf(chunks, reference.plain_model().state_dict())
        self.wrapped = wrap_ddp(chunks, self.config, parallel)
        self.optimizer = build_optimizer(self.wrapped, reference.OPTIMIZER, parallel, precision)

    def backward(self, step: int) -> StepStats:
        for chunk in self.wrapped:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        return forward_backward(self.wrapped, own_batches(step), self.config)

    def update(self) -> float:
        success, norm, _ = self.optimizer.step()
        assert success
        return float(norm)

    def weights(self) -> dict[str, torch.Tensor]:
        """Full weights on all ranks."""
        sync_parameters(self.wrapped)
        return core_to_hf(self.wrapped, all_ranks=True)

    def sharded_state(self, loading: bool) -> dict:
        state = {f"model{i}": chunk.module.sharded_state_dict() for i, chunk in enumerate(self.wrapped)}
        metadata = {"distrib_optim_sharding_type": "fully_reshardable"}
        state["optimizer"] = self.optimizer.sharded_state_dict(state, is_loading=loading, metadata=metadata)
        return state

    def save(self, folder: Path) -> None:
        """Shared out over data-parallel ranks, as a trainer saves."""
        if torch.distributed.get_rank() == 0:
            folder.mkdir()
        torch.distributed.barrier()
        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        strategy = FullyParallelSaveStrategyWrapper(TorchDistSaveShardedStrategy(), group)
        dist_checkpointing.save(self.sharded_state(loading=False), str(folder), strategy)

    def load(self, folder: Path) -> None:
        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        strategy = FullyParallelLoadStrategyWrapper(TorchDistLoadShardedStrategy(), group)
        state = dist_checkpointing.load(self.sharded_state(loading=True), str(folder), strategy)
        for i, chunk in enumerate(self.wrapped):
            chunk.module.load_state_dict(state[f"model{i}"], strict=True)
        self.optimizer.load_state_dict(state["optimizer"])


def train(parallel: ParallelConfig, expected: dict, folder: Path) -> dict:
    """Errors of one layout against the plain model; after the first step it leaves a checkpoint in `folder`."""
    training = Training(parallel)
    result = {"buckets": max(len(buffer.buckets) for chunk in training.wrapped for buffer in chunk.buffers)}
    result["losses"], result["norms"], result["tokens"] = [], [], []
    for step in range(reference.STEPS):
        with counted_exchanges() as sent:
            stats = training.backward(step)
        result["exchanges"], result["sent"] = len(sent), sum(sent)
        result["losses"].append(stats.loss)
        result["tokens"].append(stats.num_tokens)
        if step == 0:
            complete_gradient_shards(training.wrapped)
            gradients = core_to_hf(training.wrapped, lambda param: param.main_grad)
        result["norms"].append(training.update())
        if step == 0:
            sync_parameters(training.wrapped)
            training.save(folder)
    weights = training.weights()
    if torch.distributed.get_rank() == 0:
        result["gradients"] = reference.relative_errors(gradients, expected["gradients"])
        result["weights"] = reference.relative_errors(weights, expected["weights"])
    result["copies_agree"] = copies_agree(training.wrapped)
    return result


def train_bf16(parallel: ParallelConfig, expected: dict) -> dict:
    """The same steps in bf16: losses, and the error of the whole fp32 gradient against the plain fp32 model's."""
    training = Training(parallel, BF16)
    result = {"losses": []}
    for step in range(reference.STEPS):
        result["losses"].append(training.backward(step).loss)
        if step == 0:
            complete_gradient_shards(training.wrapped)
            gradients = core_to_hf(training.wrapped, lambda param: param.main_grad, all_ranks=True)
        training.update()
    names = sorted(gradients)
    flat, truth = (torch.cat([part[name].flatten() for name in names]) for part in (gradients, expected["gradients"]))
    result["gradient_error"] = ((flat - truth).norm() / truth.norm()).item()
    result["dtypes"] = sorted({str(gradients[name].dtype) for name in names})
    sync_parameters(training.wrapped)
    result["copies_agree"] = copies_agree(training.wrapped)
    return result


def resume(parallel: ParallelConfig, expected: dict, folder: Path) -> dict[str, float]:
    """Errors of the last steps, done at this layout from a checkpoint that another layout left after the first."""
    training = Training(parallel)
    training.load(folder)
    for step in range(1, reference.STEPS):
        training.backward(step)
        training.update()
    return reference.relative_errors(training.weights(), expected["weights"])


def copies_agree(wrapped: list) -> bool:
    """Whether all copies of every parameter on all ranks are bit-equal: over data ranks, tensor ranks and stages."""
    own = {}
    for i, chunk in enumerate(wrapped):
        for name, param in chunk.module.named_parameters():
            split = getattr(param, "tensor_model_parallel", False)
            key = (name, parallel_state.get_tensor_model_parallel_rank() if split else 0)
            own[(i, *key)] = param.detach().double().sum().item()
    gathered: list = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, own)
    values: dict = {}
    for (_, *key), value in (item for rank in gathered for item in rank.items()):
        values.setdefault(tuple(key), set()).add(value)
    return all(len(copies) == 1 for copies in values.values())


def initial(parallel: ParallelConfig) -> dict[str, torch.Tensor]:
    return core_to_hf(build_model(reference.MODEL, parallel, FP32, seed=7), all_ranks=True)


def save(parallel: ParallelConfig, folder: Path) -> None:
    """Write the reference weights through `sharded_state_dict`."""
    chunks = build_model(reference.MODEL, parallel, FP32, seed=1)
    load_hf(chunks, reference.plain_model().state_dict())
    if torch.distributed.get_rank() == 0:
        folder.mkdir()
    torch.distributed.barrier()
    dist_checkpointing.save({f"model{i}": chunk.sharded_state_dict() for i, chunk in enumerate(chunks)}, str(folder))


def load(parallel: ParallelConfig, folder: Path) -> bool:
    """Whether the weights read at this layout are those that were saved, bit for bit."""
    chunks = build_model(reference.MODEL, parallel, FP32, seed=2)
    sharded = {f"model{i}": chunk.sharded_state_dict() for i, chunk in enumerate(chunks)}
    state = dist_checkpointing.load(sharded, str(folder))
    for i, chunk in enumerate(chunks):
        chunk.load_state_dict(state[f"model{i}"], strict=True)
    expected, actual = reference.plain_model().state_dict(), core_to_hf(chunks, all_ranks=True)
    return all(torch.equal(actual[name], tensor) for name, tensor in expected.items())


def main(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    world_size = int(os.environ["WORLD_SIZE"])
    expected = torch.load(folder / "expected.pt")
    layouts = {name: layout for name, layout in LAYOUTS[world_size].items() if not names or name in names}
    # Each layout reads what the one before it wrote.
    saved = trained = None
    for name, layout in layouts.items():
        started = time.perf_counter()
        initialize_distributed(layout)
        result = train(layout, expected, folder / f"training_{name}")
        if trained is not None:
            result["resumed_from"], result["resumed"] = trained.name, resume(layout, expected, trained)
        trained = folder / f"training_{name}"
        fresh = initial(layout)
        result["same_initial_weights"] = all(torch.equal(fresh[key], expected["initial"][key]) for key in fresh)
        if saved is not None:
            result["loaded_from"], result["loads_equal"] = saved.name, load(layout, saved)
        saved = folder / f"checkpoint_{name}"
        save(layout, saved)
        result["seconds"] = time.perf_counter() - started
        if torch.distributed.get_rank() == 0:
            (folder / f"{name}.json").write_text(json.dumps(result))
        parallel_state.destroy_model_parallel()
    for name in (name for name in BF16_LAYOUTS if name in layouts):
        initialize_distributed(layouts[name])
        result = train_bf16(layouts[name], expected)
        if torch.distributed.get_rank() == 0:
            (folder / f"bf16_{name}.json").write_text(json.dumps(result))
        parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()
