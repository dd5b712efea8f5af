"""The cases of the training step, and what may go wrong with one without ending the others."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from phantom_mega.errors import UserError

# Reference images of the sample that a step trains on.
REFERENCES = 1
# Relative error (2-norm) against the plain model in fp32 that a case may have: about four times what four blocks with
# eight bits of mantissa make, and more for FP8's four. Full attention in place of windows is off by several percent.
TOLERANCE = {"fp32": 1e-4, "bf16": 0.03, "fp8": 0.15}


@dataclass(frozen=True)
class Case:
    """One way to compute the step.

    Attributes:
        name: as `--cases` takes it.
        label: as tables print it, without the precision.
        engine: the model that runs it: `ours`, `ours_fp8` or `diffusers`; cases of one share its weights and optimizer.
        windows: whether it computes window attention; else full attention.
        backend: of our attention; None takes the one of the command line.
        kernel: of the peer's attention, see `DiffusersPeer.configure`.
        compiled: whether torch.compile compiles each block.
        needs_gpu: why it cannot run on a CPU; empty if it can.
    """

    name: str
    label: str
    engine: str
    windows: bool = False
    backend: str | None = None
    kernel: str | None = None
    compiled: bool = False
    needs_gpu: str = ""


_CUDNN = "cuDNN attention needs a GPU"
CASES = (
    Case("ours_full", "ours, full attention", "ours"),
    Case("ours_windows", "ours, windows", "ours", windows=True),
    Case("ours_windows_fp8", "ours, windows, FP8", "ours_fp8", windows=True, needs_gpu="FP8 needs a GPU"),
    # Gathers every window's rows, text and references repeated in each, then one variable-length call.
    Case("seedvr_varlen", "SeedVR-style repeated varlen, windows", "ours", windows=True, backend="varlen"),
    # The fair ones first: what a deadline cuts off is at the end.
    Case("diffusers_flash", "diffusers, no mask, flash", "diffusers", kernel="flash"),
    Case("diffusers_cudnn", "diffusers, no mask, cuDNN", "diffusers", kernel="cudnn", needs_gpu=_CUDNN),
    Case(
        "diffusers_cudnn_compiled",
        "diffusers, no mask, cuDNN, compiled per block",
        "diffusers",
        kernel="cudnn",
        compiled=True,
        needs_gpu=_CUDNN,
    ),
    Case("diffusers_stock", "diffusers, stock", "diffusers"),
    Case("diffusers_compiled", "diffusers, compiled per block", "diffusers", compiled=True),
)
# The fair peer is the fastest of these: the same work, by the best kernels that diffusers can be told to use.
FAIR = ("diffusers_flash", "diffusers_cudnn", "diffusers_cudnn_compiled")


class Deadline:
    """When to begin nothing more.

    Args:
        seconds: from now; 0 for never.
    """

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds if seconds else float("inf")

    @property
    def passed(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() > self.end


def attempt[T](work: Callable[..., T], *arguments) -> tuple[T | None, str | None]:
    """(result, None), or (None, what went wrong); memory that a failure held is free afterwards.

    One case must not take the others' numbers with it: whatever it raises is its result.
    """
    try:
        return work(*arguments), None
    except torch.OutOfMemoryError:
        problem = "out of memory"
    except UserError as error:
        problem = f"not run: {error}"
    except Exception as error:
        problem = f"failed: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    gc.collect()
    torch.cuda.empty_cache()
    return None, problem


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """|actual - expected| / |expected| in the 2-norm; 0 where both are zero."""
    expected = expected.float()
    return ((actual.float() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def check(name: str, actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> float:
    """Relative error of `actual`.

    Raises:
        RuntimeError: it is above the tolerance, or not a number.
    """
    error = relative_error(actual, expected)
    if not error <= tolerance:
        raise RuntimeError(f"{name} differs from the reference by {error:.2g}, more than {tolerance:g}; not timed")
    return error
