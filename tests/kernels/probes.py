"""Small kernels around single functions of the real ones, for the interpreter's process."""

import torch
import triton
import triton.language as tl

from phantom_mega.kernels.window_forward import offsets


@triton.jit
def _offsets_kernel(rows, out, stride, HEAD_DIM: tl.constexpr):
    found = offsets(tl.load(rows + tl.arange(0, 2)), stride, HEAD_DIM)
    tl.store(out + tl.arange(0, 2)[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :], found)


def row_offsets(rows: list[int], stride: int) -> torch.Tensor:
    """`offsets` of two rows, int64 [2, 16]."""
    out = torch.zeros(2, 16, dtype=torch.int64)
    _offsets_kernel[1,](torch.tensor(rows, dtype=torch.int32), out, stride, HEAD_DIM=16)
    return out
