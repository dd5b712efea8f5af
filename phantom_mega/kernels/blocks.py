"""Sizes of blocks of the window-attention kernels: one choice for each kernel, and what to try instead.

The choice is fixed and not made by an autotuner at run time: it decides the order of sums, so a run can be repeated to
the bit on another day, and no rank waits for another's timing. `tune.py` measures the candidates on the GPU at hand.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton

KERNELS = ("attend", "mean", "delta", "dq", "dkv")
HEAD_DIMS = (16, 32, 64, 128)
# Whether kernels run in Triton's interpreter on the CPU; decided when they are defined (TRITON_INTERPRET=1).
INTERPRETED = triton.knobs.runtime.interpret


@dataclass(frozen=True)
class Blocks:
    """How one kernel cuts its work.

    Attributes:
        tile: rows of a program.
        step: rows that it walks at a time.
        warps: warps of a program.
        stages: steps whose copies are under way at once.
    """

    tile: int
    step: int
    warps: int
    stages: int


# The first of each is used, for all head sizes. They are meant for heads of 128 channels on Hopper: all compile within
# its shared memory, and the first spill no registers inside of a loop. Which is fastest has not been measured yet.
_HALF = {
    "attend": (Blocks(128, 64, 8, 3), Blocks(128, 128, 8, 2), Blocks(64, 64, 4, 3), Blocks(128, 64, 8, 2)),
    "mean": (Blocks(128, 64, 8, 3), Blocks(64, 64, 4, 3), Blocks(128, 32, 8, 3), Blocks(128, 64, 8, 2)),
    "delta": (Blocks(64, 64, 4, 1), Blocks(32, 32, 4, 1), Blocks(128, 128, 8, 1)),
    "dq": (Blocks(128, 64, 8, 2), Blocks(64, 64, 4, 2), Blocks(128, 32, 8, 3), Blocks(128, 64, 8, 3)),
    "dkv": (Blocks(128, 32, 8, 3), Blocks(128, 64, 8, 2), Blocks(64, 64, 4, 2), Blocks(64, 32, 4, 3)),
}
# FP32 is exact (no TF32), so it runs without tensor cores; it is there for tests.
_SINGLE = {name: (Blocks(32, 16, 8, 1),) for name in KERNELS}
_INTERPRETED = {name: (Blocks(32, 16, 1, 1),) for name in KERNELS}


def candidates(kernel: str, itemsize: int) -> tuple[Blocks, ...]:
    """Blocks of a kernel (of `KERNELS`) for elements of `itemsize` bytes; the first is the one in use."""
    if INTERPRETED:
        return _INTERPRETED[kernel]
    return (_SINGLE if itemsize == 4 else _HALF)[kernel]


def chosen(itemsize: int) -> dict[str, Blocks]:
    """The blocks in use, by kernel."""
    return {kernel: candidates(kernel, itemsize)[0] for kernel in KERNELS}
