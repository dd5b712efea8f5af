"""Which libraries of fused kernels are really there: Transformer Engine, and NVIDIA's apex as a user has built it.

megatron-core takes whatever answers to `import transformer_engine` or `import apex`. But Transformer Engine's kernels
need a GPU, an apex without its compiled extensions fails at the first step, and the package registry's `apex` is
something else altogether. Imported before megatron-core is.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from dataclasses import dataclass

import torch

# apex's compiled extensions, each with a function that the right module has.
_MULTI_TENSOR = ("amp_C", "multi_tensor_adam")
_WEIGHT_GRADIENT = ("fused_weight_gradient_mlp_cuda", "wgrad_gemm_accum_fp32")


@dataclass(frozen=True)
class FusedLibraries:
    """What can be used on this machine.

    Attributes:
        transformer_engine: its version, or None.
        apex_multi_tensor: apex's fused Adam, norms and scaling (`amp_C`).
        apex_weight_gradient: apex's GEMM that adds to fp32 gradients (`fused_weight_gradient_mlp_cuda`).
        remarks: what is installed but cannot be used, and why.
    """

    transformer_engine: str | None = None
    apex_multi_tensor: bool = False
    apex_weight_gradient: bool = False
    remarks: tuple[str, ...] = ()


@functools.cache
def find() -> FusedLibraries:
    """Look once, by importing the compiled modules themselves: a name alone says nothing."""
    gpu, remarks = torch.cuda.is_available(), []
    engine = None
    if _installed("transformer_engine"):
        remark = None if gpu else "needs a GPU"
        try:
            engine = _transformer_engine_version() if gpu else None
        except Exception as error:  # whatever a package that is not what it seems may raise
            remark = f"cannot be imported: {str(error).strip().splitlines()[-1]}"
        if remark:
            remarks.append(f"transformer_engine {remark}")
    multi_tensor, weight_gradient = _has(*_MULTI_TENSOR), _has(*_WEIGHT_GRADIENT)
    if _installed("apex") and not (gpu and multi_tensor):
        why = "needs a GPU" if multi_tensor else "is not NVIDIA's, or built without its extensions (there is no amp_C)"
        remarks.append(f"apex {why}")
    return FusedLibraries(engine, gpu and multi_tensor, gpu and weight_gradient, tuple(remarks))


def hide_unusable() -> None:
    """Make megatron-core's `import transformer_engine` and `import apex` fail where it could not use them.

    Both answer with ImportError in this process from now on; megatron-core then takes torch's own operations.
    """
    found = find()
    for name, usable in (("transformer_engine", found.transformer_engine), ("apex", found.apex_multi_tensor)):
        if not usable and _installed(name):
            sys.modules[name] = None


def _installed(name: str) -> bool:
    """Whether `import name` would find a package; nothing of it is run."""
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # it was put into sys.modules by hand
        return sys.modules.get(name) is not None


def _has(module: str, function: str) -> bool:
    try:
        return hasattr(importlib.import_module(module), function)
    except (ImportError, OSError):  # absent, or built for another torch or CUDA
        return False


def _transformer_engine_version() -> str:
    importlib.import_module("transformer_engine.pytorch")
    return importlib.import_module("transformer_engine").__version__
