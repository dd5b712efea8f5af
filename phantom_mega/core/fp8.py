"""FP8 around the blocks, as megatron-core's own TransformerBlock does it, and its scales in checkpoints.

Transformer Engine quantizes the inputs of its linears while an FP8 context is open. Attention, norms, modulation and
everything outside of the blocks stay in bf16.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.enums import Fp8Recipe
from megatron.core.extensions.transformer_engine import te_checkpoint
from megatron.core.fp8_utils import get_fp8_context, get_fp8_recipe
from megatron.core.transformer import TransformerConfig
from torch import nn

from phantom_mega.config import PrecisionConfig
from phantom_mega.core import fused_libraries
from phantom_mega.errors import UserError

_SCALES = ("scale_fwd", "amax_history_fwd", "scale_bwd", "amax_history_bwd")


def require_fp8(precision: PrecisionConfig) -> None:
    """Check that this machine can compute what `precision.fp8` asks for.

    Raises:
        UserError: no GPU, one without FP8, no Transformer Engine, or a recipe that it cannot run here.
    """
    if precision.fp8 is None:
        return
    setting, way_out = f"precision.fp8={precision.fp8}", "set precision.fp8=null"
    if not torch.cuda.is_available():
        raise UserError(f"{setting} needs a GPU with FP8 tensor cores (Ada, Hopper or newer), there is none; {way_out}")
    if fused_libraries.find().transformer_engine is None:
        raise UserError(f"{setting} needs Transformer Engine (pip install phantom-mega[te]); install it or {way_out}")
    import transformer_engine.pytorch as te

    available = te.is_fp8_block_scaling_available if precision.fp8_recipe == "blockwise" else te.is_fp8_available
    can, why = available(return_reason=True)
    if not can:
        raise UserError(f"{setting} with fp8_recipe={precision.fp8_recipe} cannot run on this GPU: {why}; {way_out}")


def stage_context(config: TransformerConfig) -> contextlib.AbstractContextManager:
    """Around all blocks of a forward pass: delayed scaling updates its history when the outermost context ends."""
    delayed = config.fp8 and config.fp8_recipe == Fp8Recipe.delayed
    return get_fp8_context(config) if delayed else contextlib.nullcontext()


def block_context(config: TransformerConfig, layer: int) -> contextlib.AbstractContextManager:
    """Around one block, numbered in the whole model: the other recipes, with the layers that stay in bf16."""
    by_layer = config.fp8 and config.fp8_recipe != Fp8Recipe.delayed
    return get_fp8_context(config, layer) if by_layer else contextlib.nullcontext()


def checkpoint(config: TransformerConfig, function: Callable, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Activation recompute of `function(*tensors)`; under FP8 Transformer Engine's, which repeats with equal scales."""
    if not config.fp8:
        return tensor_parallel.checkpoint(function, False, *tensors)
    group = parallel_state.get_tensor_model_parallel_group()
    return te_checkpoint(function, False, tensor_parallel.random.get_cuda_rng_tracker, group, *tensors)


# -- checkpoints


def save_scales_as_tensors(state: dict) -> None:
    """Replace Transformer Engine's pickled state of delayed scaling by its tensors, in a sharded state dict.

    A pickle in a checkpoint could run code in whoever loads it; Transformer Engine refuses its own for that reason.
    Other recipes and precisions have no state: None.
    """
    for key, sharded in state.items():
        if key.endswith("_extra_state"):
            sharded.data = _scales(sharded.data)


def _scales(extra_state: torch.Tensor | None) -> dict[str, torch.Tensor] | None:
    if not isinstance(extra_state, torch.Tensor) or not extra_state.numel():
        return None
    # Made by this process a moment ago.
    content = pickle.loads(extra_state.numpy().tobytes())
    return {name: content[name] for name in _SCALES} if _SCALES[0] in content else None


def restore_scales(chunk: nn.Module, state: dict) -> dict:
    """Give delayed scaling the scales and maxima of a loaded state dict; returns the state dict without them.

    Without them (saved with another recipe or in another precision) delayed scaling starts anew.
    """
    config, rest = chunk.config, dict(state)
    for key in (key for key in state if key.endswith("_extra_state")):
        rest[key] = None
        if isinstance(state[key], dict) and config.fp8 and config.fp8_recipe == Fp8Recipe.delayed:
            _set_scales(chunk.get_submodule(key.rpartition(".")[0]), config, state[key])
    return rest


def _set_scales(linear: nn.Module, config: TransformerConfig, scales: dict[str, torch.Tensor]) -> None:
    """What TransformerEngineBaseModule.set_extra_state does with its pickle."""
    meta = linear.fp8_meta
    meta["recipe"], meta["num_gemms"] = get_fp8_recipe(config), 1
    linear.init_fp8_meta_tensors(meta["recipe"])
    for way in ("fwd", "bwd"):
        target = meta[f"scaling_{way}"]
        target.scale.copy_(scales[f"scale_{way}"])
        history = scales[f"amax_history_{way}"]
        kept = min(len(history), len(target.amax_history))  # its length may have changed
        target.amax_history[:kept].copy_(history[:kept])
