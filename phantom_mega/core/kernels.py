"""Which implementation serves which part of a step, in words: what a run prints when it starts.

Read from what was really built and imported, for a library that is missing or wrong shows in nothing but the speed.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

import torch
from megatron.core.transformer import TransformerConfig

from phantom_mega.core.fused import implementation
from phantom_mega.core.fused_libraries import FusedLibraries


def kernel_lines(
    config: TransformerConfig, impl: str, backend: str, adam: type, norm: Callable, found: FusedLibraries
) -> list[str]:
    """One line a part.

    Args:
        config: of the model that was built.
        impl: a resolved name of `specs.TRANSFORMER_IMPLS`.
        backend: a resolved name of `attention.BACKENDS`.
        adam: class of the optimizer inside of the distributed one.
        norm: the function that computes gradient norms.
        found: the libraries of fused kernels that are there.
    """
    engine = impl == "transformer_engine"
    fused = f"added to fp32 by the GEMM that computes them ({'Transformer Engine' if engine else 'apex'})"
    versions = [f"torch {torch.__version__}", f"megatron-core {version('megatron-core')}"]
    if found.transformer_engine:
        versions.append(f"Transformer Engine {found.transformer_engine}")
    rows = {
        "linears": f"{'Transformer Engine' if engine else 'megatron-core'}, {_format(config)}",
        "attention": f"{backend}, {'bf16' if config.bf16 else 'fp32'}",
        "elementwise": implementation(),
        "weight grads": fused if config.gradient_accumulation_fusion else "added by an operation of their own",
        "grad norm": _origin(norm),
        "optimizer": f"{_origin(adam)} {adam.__name__}",
        "libraries": ", ".join(versions),
    }
    lines = [f"{name:<13}{text}" for name, text in rows.items()]
    return lines + [f"{'not used':<13}{remark}" for remark in found.remarks]


def _origin(thing: type | Callable) -> str:
    """The library that a class or function comes from."""
    package = (thing.__module__ or "").partition(".")[0]
    if package.startswith("transformer_engine"):
        return "Transformer Engine"
    return "apex" if package in ("apex", "amp_C") else "torch"


def _format(config: TransformerConfig) -> str:
    if not config.fp8:
        return "bf16" if config.bf16 else "fp32"
    text = f"FP8 {config.fp8}, {config.fp8_recipe} scales"
    if config.first_last_layers_bf16:
        first, last = config.num_layers_at_start_in_bf16, config.num_layers_at_end_in_bf16
        text += f", bf16 in the first {first} and the last {last} blocks"
    return text
