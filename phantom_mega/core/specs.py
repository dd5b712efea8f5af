"""Which linears a block is made of: megatron-core's own, or Transformer Engine's where it and a GPU are there.

The shape of a block is in `layers.py`; a ModuleSpec only names the classes that fill its places.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec

from phantom_mega.core import fused_libraries
from phantom_mega.errors import UserError

TRANSFORMER_IMPLS = ("auto", "local", "transformer_engine")


@dataclass
class StreamBlockSubmodules:
    """Places of a `StreamBlock`: the column-parallel qkv, the row-parallel output projection, the MLP."""

    linear_qkv: ModuleSpec | type
    linear_proj: ModuleSpec | type
    mlp: ModuleSpec | type


@dataclass
class DualStreamBlockSubmodules:
    """Places of a `DualStreamBlock`: its two streams."""

    visual: ModuleSpec
    text: ModuleSpec


def resolve_transformer_impl(name: str) -> str:
    """`local` or `transformer_engine`; `auto` takes the latter where it can run.

    Raises:
        UserError: an unknown name, or `transformer_engine` where it cannot run.
    """
    if name not in TRANSFORMER_IMPLS:
        raise UserError(f"transformer_impl={name!r} is unknown; use one of {', '.join(TRANSFORMER_IMPLS)}")
    # Its layers cannot be built without a GPU.
    available = fused_libraries.find().transformer_engine is not None
    if name == "transformer_engine" and not available:
        raise UserError(
            "transformer_impl=transformer_engine needs a GPU and Transformer Engine (pip install phantom-mega[te]); "
            "use auto or local"
        )
    if name == "auto":
        return "transformer_engine" if available else "local"
    return name


def fuses_weight_gradients(transformer_impl: str, bf16: bool, hooked: bool) -> bool:
    """Whether the GEMM of a weight's gradient adds to the fp32 gradient buffer itself, without a bf16 copy between.

    Transformer Engine's linears can; megatron-core's own need an extension of apex for it, and not to be `hooked`: what
    autograd's hooks for saved tensors (`recompute.dropped`, `offload`) give back in place of a weight is another Python
    object, where these linears tell DDP in vain that the gradient is added already.

    Raises:
        UserError: see `resolve_transformer_impl`.
    """
    engine = resolve_transformer_impl(transformer_impl) == "transformer_engine"
    return bf16 and (engine or (fused_libraries.find().apex_weight_gradient and not hooked))


def block_spec(transformer_impl: str = "auto") -> ModuleSpec:
    """ModuleSpec of a `DualStreamBlock`.

    Raises:
        UserError: see `resolve_transformer_impl`.
    """
    from phantom_mega.core.layers import BiasGeluMLP, DualStreamBlock, StreamBlock

    column, row = ColumnParallelLinear, RowParallelLinear
    if resolve_transformer_impl(transformer_impl) == "transformer_engine":
        from megatron.core.extensions.transformer_engine import TEColumnParallelLinear, TERowParallelLinear

        column, row = TEColumnParallelLinear, TERowParallelLinear
    mlp = ModuleSpec(module=BiasGeluMLP, submodules=MLPSubmodules(linear_fc1=column, linear_fc2=row))
    stream = ModuleSpec(
        module=StreamBlock, submodules=StreamBlockSubmodules(linear_qkv=column, linear_proj=row, mlp=mlp)
    )
    return ModuleSpec(module=DualStreamBlock, submodules=DualStreamBlockSubmodules(visual=stream, text=stream))
