"""Measures the block sizes that `blocks.py` lists, kernel by kernel; `tools/tune_attention.py` prints the result."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton

from phantom_mega.attention import Windows
from phantom_mega.kernels.blocks import KERNELS, Blocks, candidates, chosen
from phantom_mega.kernels.tiles import TileIndex
from phantom_mega.kernels.window_attention import backward, forward


@dataclass(frozen=True)
class Timing:
    """One candidate of one kernel.

    Attributes:
        kernel: a name of `KERNELS`.
        blocks: the candidate.
        milliseconds: of the whole forward pass (attend, mean) or backward pass (the others) with it, all other kernels
            as chosen; None where it does not fit the GPU.
    """

    kernel: str
    blocks: Blocks
    milliseconds: float | None


def median_milliseconds(call: Callable[[], object], device: torch.device) -> float:
    """Median time of a call: CUDA events with the L2 cache emptied in between, or the clock of a CPU."""
    if device.type == "cuda":
        return triton.testing.do_bench(call, warmup=50, rep=200, return_mode="median")
    started = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - started)


def measure(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    grad: torch.Tensor,
    windows: Windows,
    tried: Callable[[str, int], tuple[Blocks, ...]] = candidates,
) -> list[Timing]:
    """Time every candidate on contiguous q, k, v and output gradient [J, N, D], kernel after kernel."""
    timings, best = [], chosen(q.element_size())
    for kernel in KERNELS:
        for candidate in tried(kernel, q.element_size()):
            blocks = best | {kernel: candidate}
            index = TileIndex.of(windows, {one.tile for one in blocks.values()})
            try:
                saved = forward(q, k, v, index, blocks, True)
                if kernel in ("attend", "mean"):
                    spent = median_milliseconds(lambda: forward(q, k, v, index, blocks, True), q.device)  # noqa: B023
                else:
                    spent = median_milliseconds(
                        lambda: backward(q, k, v, *saved, grad, index, blocks),  # noqa: B023
                        q.device,
                    )
            except triton.runtime.errors.OutOfResources:
                spent = None
            timings.append(Timing(kernel, candidate, spent))
    return timings


def fastest(timings: list[Timing]) -> dict[str, Timing]:
    """The best candidate of each kernel, of those that fit."""
    fitting = [timing for timing in timings if timing.milliseconds is not None]
    return {
        kernel: min((timing for timing in fitting if timing.kernel == kernel), key=lambda timing: timing.milliseconds)
        for kernel in dict.fromkeys(timing.kernel for timing in fitting)
    }
