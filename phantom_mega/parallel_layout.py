"""Which layouts can be built: checks of the configuration alone, before any process starts, without megatron-core."""

from __future__ import annotations

import difflib
import math

from phantom_mega.config import DataConfig, ModelConfig, ParallelConfig
from phantom_mega.errors import UserError
from phantom_mega.hf.head_parallel import nearest_divisor
from phantom_mega.hf.transformer_phantom import check_sizes

# What `recompute_granularity=selective` can compute again, with what that saves and costs (`core.fused` has the bytes).
RECOMPUTE_MODULES = {
    "layernorm": "inputs of linear_qkv and linear_fc1: modulated norms, nearly free",
    "mlp_act": "input of linear_fc2: GELU, nearly free",
    "mlp": "all of the MLP with its norm: one more forward pass of its two linears",
    "core_attn": "all of window attention but q, k and v: one more forward pass of it",
}
DEFAULT_RECOMPUTE_MODULES = ("layernorm", "mlp_act")


def layers_per_chunk(model: ModelConfig, parallel: ParallelConfig) -> int:
    """Blocks of one model chunk: a pipeline rank holds `virtual_pipeline_model_parallel_size` chunks, or one."""
    return model.num_layers // (
        parallel.pipeline_model_parallel_size * (parallel.virtual_pipeline_model_parallel_size or 1)
    )


def check_layout(
    model: ModelConfig, parallel: ParallelConfig, data: DataConfig | None = None, world_size: int | None = None
) -> None:
    """Refuse layouts that cannot be built, before any process group exists.

    Args:
        model, parallel: the model and its layout.
        data: also check that context and sequence parallelism can split its packs.
        world_size: also check that the ranks can form the layout.

    Raises:
        UserError: names the field, its value and what it must be.
    """
    check_sizes(model.hidden_size, model.num_attention_heads, model.rope_axes_dim)
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    vpp = parallel.virtual_pipeline_model_parallel_size
    for name in ("tensor_model_parallel_size", "context_parallel_size", "pipeline_model_parallel_size"):
        if getattr(parallel, name) < 1:
            raise UserError(f"parallel.{name}={getattr(parallel, name)} must be at least 1")
    for name in ("num_attention_heads", "ffn_hidden_size"):
        if getattr(model, name) % tp:
            raise UserError(f"model.{name}={getattr(model, name)} is not a multiple of tensor_model_parallel_size={tp}")
    _check_context(model, parallel)
    if vpp is not None and pp == 1:
        raise UserError(
            f"virtual_pipeline_model_parallel_size={vpp} needs pipeline_model_parallel_size > 1; "
            "set it to null or use more pipeline stages"
        )
    if vpp is not None and vpp < 2:
        raise UserError(f"virtual_pipeline_model_parallel_size={vpp} must be at least 2, or null for plain 1F1B")
    if model.num_layers % (pp * (vpp or 1)):
        raise UserError(
            f"model.num_layers={model.num_layers} is not a multiple of pipeline_model_parallel_size x "
            f"virtual_pipeline_model_parallel_size = {pp} x {vpp or 1}"
        )
    if parallel.sequence_parallel and tp == 1:
        raise UserError("sequence_parallel=true needs tensor_model_parallel_size > 1; switch one of them")
    if parallel.overlap_param_gather and not parallel.overlap_grad_reduce:
        raise UserError("overlap_param_gather=true needs overlap_grad_reduce=true; set it too")
    _check_recompute(model, parallel)
    if data is not None:
        _check_lengths(data, parallel)
    if world_size is not None:
        check_world_size(parallel, world_size)


def check_world_size(parallel: ParallelConfig, world_size: int) -> None:
    """Raises:
    UserError: the ranks cannot form whole model replicas.
    """
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    cp = parallel.context_parallel_size
    if world_size % (tp * cp * pp):
        raise UserError(
            f"{world_size} ranks cannot form groups of tensor_model_parallel_size x context_parallel_size x "
            f"pipeline_model_parallel_size = {tp} x {cp} x {pp}; start a multiple of {tp * cp * pp}"
        )


def _check_context(model: ModelConfig, parallel: ParallelConfig) -> None:
    heads, tp, cp = model.num_attention_heads, parallel.tensor_model_parallel_size, parallel.context_parallel_size
    if heads % (tp * cp):
        raise UserError(
            f"model.num_attention_heads={heads} is not a multiple of tensor_model_parallel_size x "
            f"context_parallel_size = {tp} x {cp}, over which attention shares heads; the nearest "
            f"context_parallel_size is {nearest_divisor(heads // tp, cp)}"
        )


def _check_lengths(data: DataConfig, parallel: ParallelConfig) -> None:
    names = [*(["tensor_model_parallel_size"] if parallel.sequence_parallel else []), "context_parallel_size"]
    sizes = {name: getattr(parallel, name) for name in names if getattr(parallel, name) > 1}
    parts, product = math.prod(sizes.values()), " x ".join(sizes)
    for name in ("seq_length", "text_seq_length"):
        length = getattr(data, name)
        if length % parts:
            raise UserError(
                f"data.{name}={length} is not a multiple of {product} = {' x '.join(map(str, sizes.values()))}, over "
                f"which tokens are split; use {-(-length // parts) * parts}"
            )


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"did you mean {close[0]}? Known are {', '.join(known)}" if close else f"use {', '.join(known)}"


def _check_recompute(model: ModelConfig, parallel: ParallelConfig) -> None:
    granularity, modules = parallel.recompute_granularity, parallel.recompute_modules
    layers, per_chunk = parallel.recompute_num_layers, layers_per_chunk(model, parallel)
    if granularity not in (None, "full", "selective"):
        raise UserError(f"recompute_granularity={granularity!r} is unknown; use full, selective or null")
    if layers is not None and granularity != "full":
        raise UserError(f"recompute_num_layers={layers} has no effect without recompute_granularity=full; set both")
    if layers is not None and not 1 <= layers <= per_chunk:
        raise UserError(f"recompute_num_layers={layers} must lie in 1..{per_chunk}, the layers of a pipeline stage")
    if modules and granularity != "selective":
        raise UserError(f"recompute_modules={modules} has no effect without recompute_granularity=selective; set both")
    for name in modules:
        if name not in RECOMPUTE_MODULES:
            raise UserError(f"recompute_modules has {name!r}, which is unknown; {_nearest(name, [*RECOMPUTE_MODULES])}")
    if {"mlp", "mlp_act"} <= set(modules):
        raise UserError("recompute_modules has mlp and mlp_act, which is a part of it; leave one out")
    offloaded = parallel.cpu_offloading_num_layers
    if not 0 <= offloaded <= per_chunk:
        raise UserError(
            f"cpu_offloading_num_layers={offloaded} must lie in 0..{per_chunk}, the layers of a pipeline stage"
        )


def check_num_microbatches(parallel: ParallelConfig, num_microbatches: int) -> None:
    """The interleaved schedule takes microbatches in groups of the pipeline size.

    Raises:
        UserError: `num_microbatches` (packs of one iteration on one data-parallel rank) is not such a multiple.
    """
    pp = parallel.pipeline_model_parallel_size
    if parallel.virtual_pipeline_model_parallel_size and num_microbatches % pp:
        raise UserError(
            f"{num_microbatches} microbatches per data-parallel rank are not a multiple of "
            f"pipeline_model_parallel_size={pp}, which the interleaved schedule needs; change global_batch_size or "
            "set virtual_pipeline_model_parallel_size=null"
        )


def check_global_batch_size(global_batch_size: int, data_parallel: int) -> None:
    """Every data-parallel rank trains on as many packs.

    Raises:
        UserError: there are none, or they cannot be shared out so; names the nearest number that can.
    """
    if global_batch_size < 1:
        raise UserError(f"train.global_batch_size={global_batch_size} must be at least 1")
    if global_batch_size % data_parallel:
        nearest = max(data_parallel, round(global_batch_size / data_parallel) * data_parallel)
        raise UserError(
            f"train.global_batch_size={global_batch_size} is not a multiple of the data-parallel size "
            f"{data_parallel}; the nearest is {nearest}"
        )
