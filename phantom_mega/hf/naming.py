"""Names of the weights here, in the plain model, and in `phantom_mega.core`, whose checkpoints use the latter.

They differ by Megatron's terms, and `linear_qkv` holds to_q, to_k and to_v with rows in [N, 3, D] order (N heads of D).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

# Core name -> plain name, applied to a parameter's dotted name in this order.
_RENAMES = (
    (".q_layernorm.", ".norm_q."),
    (".k_layernorm.", ".norm_k."),
    (".linear_proj.", ".to_out."),
    (".mlp.linear_fc", ".mlp.fc"),
)
_PROJECTIONS = ("to_q", "to_k", "to_v")


def hf_names(name: str) -> tuple[str, ...]:
    """Names in the plain model of one core parameter: one, or three for the fused qkv."""
    if ".linear_qkv." in name:
        return tuple(name.replace("linear_qkv", projection) for projection in _PROJECTIONS)
    for core, plain in _RENAMES:
        name = name.replace(core, plain)
    return (name,)


def core_name(name: str) -> str:
    """The core parameter that holds one of the plain model: `to_q`, `to_k` and `to_v` share one."""
    for projection in _PROJECTIONS:
        name = name.replace(f".{projection}.", ".linear_qkv.")
    for core, plain in _RENAMES:
        name = name.replace(plain, core)
    return name


def fuse_qkv(parts: Iterable[torch.Tensor], heads: int) -> torch.Tensor:
    """to_q, to_k, to_v, each [N*D, ...] -> linear_qkv [N*3*D, ...]."""
    return torch.stack([part.unflatten(0, (heads, -1)) for part in parts], dim=1).flatten(0, 2)


def split_qkv(fused: torch.Tensor, heads: int) -> list[torch.Tensor]:
    """linear_qkv [N*3*D, ...] -> to_q, to_k, to_v, each [N*D, ...]."""
    return [part.flatten(0, 1).contiguous() for part in fused.unflatten(0, (heads, 3, -1)).unbind(1)]
