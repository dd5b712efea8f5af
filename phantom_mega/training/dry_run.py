"""`--dry-run`: one real iteration without an update, and the plan of the run in words."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Sequence

import torch
import torch.distributed as dist

from phantom_mega.core.schedule import forward_backward
from phantom_mega.errors import UserError
from phantom_mega.flops import training_flops
from phantom_mega.packs import PackLayout
from phantom_mega.planner import workload
from phantom_mega.planner.communication import Cluster
from phantom_mega.planner.gpus import GPUS, gpu_of_device
from phantom_mega.planner.layouts import Machines, estimate
from phantom_mega.planner.report import estimate_lines
from phantom_mega.training.trainer import Trainer


def peak_memory_gib(device: torch.device) -> float:
    """Largest memory so far, GiB, of this rank: the GPU's allocator, or the process on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def describe(trainer: Trainer) -> str:
    """The run in words: model, layout, batch, data."""
    config, parallel, train = trainer.config, trainer.config.parallel, trainer.config.train
    own = sum(parameter.numel() for chunk in trainer.chunks for parameter in chunk.parameters())
    dp = trainer.source.dp_size
    packs = len(trainer.source.plan)
    epochs = train.train_iters * train.global_batch_size / packs
    return "\n".join(
        [
            f"model        {config.model.num_layers} blocks, width {config.model.hidden_size}, "
            f"{own / 1e6:.1f}M parameters on this rank",
            f"layout       {dist.get_world_size()} ranks = TP {parallel.tensor_model_parallel_size} x "
            f"CP {parallel.context_parallel_size} x PP {parallel.pipeline_model_parallel_size} x DP {dp}"
            + (", sequence parallel" if parallel.sequence_parallel else "")
            + (f", {parallel.recompute_granularity} recompute" if parallel.recompute_granularity else ""),
            f"windows      {config.model.window_frames} frames, {config.model.reference_injection}",
            f"iteration    {train.global_batch_size} packs of {config.data.seq_length} visual and "
            f"{config.data.text_seq_length} text-stream tokens, {train.global_batch_size // dp} a rank",
            f"run          iterations {trainer.iteration} to {train.train_iters}, {epochs:.2f} epochs of {packs} packs",
            f"data         {trainer.source.plan.report(0)}",
            f"evaluation   {trainer.evaluation.describe() if trainer.evaluation else 'none'}",
        ]
    )


def planned(trainer: Trainer, layouts: Sequence[PackLayout]) -> str:
    """What the planner says of this run on these packs: memory and time by part, what is sent (`tools/plan.py`).

    Without a GPU that it knows, it plans for an H100.
    """
    properties = torch.cuda.get_device_properties(trainer.device) if trainer.device.type == "cuda" else None
    known = properties and gpu_of_device(properties.name, properties.total_memory / 2**30)
    gpu, ranks = known or GPUS["h100"], dist.get_world_size()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    machines = Machines(Cluster(gpu, ranks // local, local), gpu.assumed)
    packs = workload.from_packs([layout.shapes for layout in layouts], trainer.config, "the first iteration's packs")
    try:
        found = estimate(trainer.config, machines, packs)
    except UserError as error:  # the run itself is possible, or it would have ended before
        return f"planned      not: {error}"
    where = f"this {gpu.name}" if known else f"one {gpu.name}, were it there"
    return "\n".join([f"planned      for {where}, by rates that are assumed, not measured", *estimate_lines(found)])


def dry_run(trainer: Trainer) -> int:
    """Forward and backward on the first iteration's batch, then print; returns exit code 0.

    Raises:
        UserError: whatever would stop the first iteration.
    """
    trainer.source.open(trainer.consumed_samples)
    try:
        data = trainer.source.next()
    finally:
        trainer.source.close()
    for chunk in trainer.wrapped:
        chunk.zero_grad_buffer()
    batches = [(batch.inputs, batch.target, batch.weight) for batch in data.batches]
    started = time.monotonic()
    stats = forward_backward(trainer.wrapped, batches, trainer.core_config)
    seconds = time.monotonic() - started
    flops = sum(training_flops(trainer.config.model, batch.inputs.layout) for batch in data.batches)
    memory = torch.tensor(peak_memory_gib(trainer.device), device=trainer.device)
    dist.all_reduce(memory, op=dist.ReduceOp.MAX)
    trainer.say(describe(trainer))
    trainer.say(planned(trainer, [batch.inputs.layout for batch in data.batches]))
    trainer.say(
        f"first batch  loss {stats.loss:.4f} over {stats.num_tokens} video tokens, {flops / 1e12:.3g} TFLOP a replica, "
        f"{len(data.bad_samples)} unreadable samples on this rank\n"
        f"measured     peak memory {memory.item():.2f} GiB a rank, forward and backward {seconds:.2f} s with start-up\n"
        "dry run: nothing was trained or written"
    )
    return 0
