"""Weights between this package's layout-split model and the plain `hf.PhantomTransformer3DModel`, both ways.

`hf.naming` has the names. The same mapping serves gradients and averaged weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from megatron.core import parallel_state
from torch import nn

from phantom_mega.core.init import full_shape, local_slice
from phantom_mega.errors import UserError
from phantom_mega.hf.naming import fuse_qkv, hf_names, split_qkv


def unwrap(chunk: nn.Module) -> nn.Module:
    """The `PhantomMMDiT` inside a DDP wrapper, or the chunk itself."""
    return chunk.module if hasattr(chunk, "ddp_config") else chunk


def hf_to_core(state_dict: dict[str, torch.Tensor], chunk: nn.Module) -> dict[str, torch.Tensor]:
    """This rank's part of a full plain state dict, by the names of one chunk.

    Raises:
        UserError: a tensor is missing or has another shape than this model.
    """
    chunk, result = unwrap(chunk), {}
    for name, param in chunk.named_parameters():
        names = hf_names(name)
        missing = [key for key in names if key not in state_dict]
        if missing:
            raise UserError(f"the state dict has no {missing[0]!r}; it is of another model or another model config")
        parts = [state_dict[key] for key in names]
        full = parts[0] if len(parts) == 1 else fuse_qkv(parts, chunk.config.num_attention_heads)
        if list(full.shape) != full_shape(param):
            raise UserError(
                f"{names[0]} has shape {list(parts[0].shape)}, but this model's {name} is {full_shape(param)}; "
                "check model.hidden_size, model.ffn_hidden_size and the feature widths"
            )
        result[name] = local_slice(full, param)
    return result


@torch.no_grad()
def load_hf(model_chunks: list[nn.Module], state_dict: dict[str, torch.Tensor]) -> None:
    """Copy a full plain state dict into this rank's chunks.

    Before the optimizer is built; after that also call its `reload_model_params()`, which refreshes fp32 copies.

    Raises:
        UserError: see `hf_to_core`.
    """
    for chunk in model_chunks:
        parameters = dict(unwrap(chunk).named_parameters())
        for name, tensor in hf_to_core(state_dict, chunk).items():
            parameters[name].copy_(tensor)


def _gather_tensor_parallel(tensor: torch.Tensor, param: nn.Parameter) -> torch.Tensor:
    size = parallel_state.get_tensor_model_parallel_world_size()
    if size == 1 or not getattr(param, "tensor_model_parallel", False):
        return tensor.contiguous()
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(size)]
    group = parallel_state.get_tensor_model_parallel_group()
    torch.distributed.all_gather(parts, tensor.contiguous(), group=group)
    return torch.cat(parts, dim=param.partition_dim)


@torch.no_grad()
def core_to_hf(
    model_chunks: list[nn.Module],
    value: Callable[[nn.Parameter], torch.Tensor] = lambda param: param.data,
    all_ranks: bool = False,
    ranks: Sequence[int] = (0,),
    dtype: torch.dtype | None = None,
) -> dict[str, torch.Tensor]:
    """The full plain state dict, gathered tensor by tensor; all ranks must call it.

    Args:
        model_chunks: this rank's chunks, wrapped or not.
        value: what to gather for a parameter, of its shape: its data, `main_grad`, an average.
        all_ranks: return the result on every rank, else on `ranks` alone and {} elsewhere.
        ranks: global ranks.
        dtype: convert what `value` gives to it, tensor by tensor; None leaves it.

    Returns:
        CPU tensors by plain names.
    """
    pp_group = parallel_state.get_pipeline_model_parallel_group()
    stage, stages = parallel_state.get_pipeline_model_parallel_rank(), pp_group.size()
    own = {}
    for chunk in model_chunks:
        for name, param in unwrap(chunk).named_parameters():
            # Copies of what every chunk holds come from the first chunk alone.
            if unwrap(chunk).pre_process or not getattr(param, "pipeline_parallel", False):
                own[name] = param
    keep = all_ranks or torch.distributed.get_rank() in ranks
    heads = unwrap(model_chunks[0]).config.num_attention_heads
    # Where the type is known nothing is asked for twice: a value may take a collective.
    described = [(stage, name, full_shape(param), dtype or value(param).dtype) for name, param in own.items()]
    gathered: list = [described]
    if stages > 1:
        gathered = [None] * stages
        torch.distributed.all_gather_object(gathered, described, group=pp_group)
    result = {}
    for owner, name, shape, dtype in (row for rows in gathered for row in rows):
        if owner == stage:
            full = _gather_tensor_parallel(value(own[name]).to(dtype=dtype), own[name])
        else:
            full = torch.empty(shape, dtype=dtype, device=torch.cuda.current_device())
        if stages > 1:
            source = torch.distributed.get_global_rank(pp_group, owner)
            torch.distributed.broadcast(full, src=source, group=pp_group)
        if keep:
            names = hf_names(name)
            parts = [full] if len(names) == 1 else split_qkv(full, heads)
            result.update({key: part.detach().clone().cpu() for key, part in zip(names, parts, strict=True)})
    return result
