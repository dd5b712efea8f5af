"""Initial weights that do not depend on the layout: each parameter is a slice of a tensor drawn from (seed, its name).

The distributions are those of DiT with adaLN-zero: a fresh model's blocks are the identity and its output is zero.
"""

from __future__ import annotations

import hashlib
import math

import torch
from megatron.core import parallel_state
from torch import nn


def full_shape(param: nn.Parameter) -> list[int]:
    """Shape of a parameter over all tensor-parallel ranks."""
    shape = list(param.shape)
    if getattr(param, "tensor_model_parallel", False):
        shape[param.partition_dim] *= parallel_state.get_tensor_model_parallel_world_size()
    return shape


def local_slice(full: torch.Tensor, param: nn.Parameter) -> torch.Tensor:
    """This tensor-parallel rank's part of the full tensor of `param`."""
    if not getattr(param, "tensor_model_parallel", False):
        return full
    size = param.shape[param.partition_dim]
    start = parallel_state.get_tensor_model_parallel_rank() * size
    return full.narrow(param.partition_dim, start, size)


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def initial_tensor(name: str, shape: list[int], seed: int) -> torch.Tensor:
    """The full float32 initial value, on the CPU, of the parameter called `name`."""
    if name.endswith("layernorm.weight"):
        return torch.ones(shape)
    zero = name.endswith(("bias", "offset")) or "_modulation." in name or name.startswith("final_")
    if zero:
        return torch.zeros(shape)
    if name.startswith("timestep_embedder."):
        return torch.empty(shape).normal_(std=0.02, generator=_generator(seed, name))
    # Xavier; the three matrices that linear_qkv fuses are drawn as three.
    fan_out = shape[0] // 3 if "linear_qkv" in name else shape[0]
    bound = math.sqrt(6.0 / (fan_out + shape[1]))
    return torch.empty(shape).uniform_(-bound, bound, generator=_generator(seed, name))


@torch.no_grad()
def init_weights(model_chunks: list[nn.Module], seed: int) -> None:
    """Fill every parameter of this rank's chunks; equal weights at any layout for one seed."""
    for chunk in model_chunks:
        for name, param in chunk.named_parameters():
            param.copy_(local_slice(initial_tensor(name, full_shape(param), seed), param))
