"""FP8 by rounding: the numbers that FP8 linears compute with, on any device, for evidence about numerics alone.

Values are rounded to FP8 and multiplied as float32, as tensor cores multiply FP8 exactly and add in wider formats.
Scales follow Transformer Engine 2.20: `DelayedScaling`, `Float8CurrentScaling`, `Float8BlockScaling` (powers of two).
Nothing here is fast, and nothing of it is in the product.
"""

from __future__ import annotations

import functools

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from torch import nn

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
BLOCK = 128


def round_to(x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """float32 values that `x` has in `dtype` under a scale; too large ones saturate."""
    largest = torch.finfo(dtype).max
    return (x.float() * scale).clamp(-largest, largest).to(dtype).float() / scale


def _scale(amax: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    scale = torch.finfo(dtype).max / amax.float()
    return torch.where((amax > 0) & scale.isfinite(), scale, torch.ones_like(scale))


def tensorwise(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The whole tensor scaled by its present maximum."""
    return round_to(x, _scale(x.abs().amax(), dtype), dtype)


def blockwise(x: torch.Tensor, dtype: torch.dtype, rows: int, columns: int) -> torch.Tensor:
    """Each block of `rows` x `columns` of a matrix scaled by its maximum, to a power of two."""
    height, width = x.shape
    padded = torch.nn.functional.pad(x.float(), (0, -width % columns, 0, -height % rows))
    blocks = padded.unflatten(1, (-1, columns)).unflatten(0, (-1, rows))
    scale = _scale(blocks.abs().amax((1, 3), keepdim=True), dtype).log2().floor().exp2()
    return round_to(blocks, scale, dtype).flatten(2, 3).flatten(0, 1)[:height, :width]


class Delayed:
    """A tensor scaled by the largest of its past maxima: one of these for every quantized tensor of a linear.

    As in Transformer Engine the first scale is 1, and this pass's maximum counts from the next one on.
    """

    def __init__(self, history: int = 1024):
        self.length, self.history = history, []

    def __call__(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        past = max(self.history, default=0.0)
        scale = _scale(torch.tensor(past), dtype)
        self.history = [*self.history, float(x.abs().amax())][-self.length :]
        return round_to(x, scale, dtype)


class Quantizers:
    """How one linear rounds what enters its three products.

    Each method returns a pair: as factor of the product that runs along the rows, and of the one along the columns.
    """

    def __init__(self, recipe: str, fp8: str):
        self.recipe, self.gradient_dtype = recipe, E5M2 if fp8 == "hybrid" else E4M3
        delayed = recipe == "delayed"
        self._tensor = {name: Delayed() if delayed else tensorwise for name in ("input", "weight", "gradient")}

    def _pair(self, name: str, x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        if self.recipe != "blockwise":
            return (self._tensor[name](x, dtype),) * 2
        if name == "weight":
            return (blockwise(x, dtype, BLOCK, BLOCK),) * 2
        return blockwise(x, dtype, 1, BLOCK), blockwise(x, dtype, BLOCK, 1)

    def input(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[tokens, in], for the output and for the weight's gradient."""
        return self._pair("input", x, E4M3)

    def weight(self, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[out, in], for the output and for the input's gradient."""
        return self._pair("weight", w, E4M3)

    def gradient(self, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[tokens, out], for the input's gradient and for the weight's."""
        return self._pair("gradient", g, self.gradient_dtype)


class RoundedLinear(torch.autograd.Function):
    """x [tokens, in], weight [out, in] -> x weight^T with all three products' factors rounded."""

    @staticmethod
    def forward(ctx, x, weight, quantizers):
        x_rows, x_columns = quantizers.input(x)
        w_rows, w_columns = quantizers.weight(weight)
        ctx.save_for_backward(x_columns, w_columns)
        ctx.quantizers, ctx.dtypes = quantizers, (x.dtype, weight.dtype)
        return (x_rows @ w_rows.t()).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        g_rows, g_columns = ctx.quantizers.gradient(grad)
        return (g_rows @ w).to(ctx.dtypes[0]), (g_columns.t() @ x).to(ctx.dtypes[1]), None


def _forward(linear: nn.Module, quantizers: Quantizers, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    y = RoundedLinear.apply(x, linear.weight, quantizers)
    return (y, linear.bias) if linear.skip_bias_add else (y + linear.bias, None)


def emulate(blocks: nn.Module, recipe: str, fp8: str) -> int:
    """Let megatron-core's linears under `blocks`, whole on one rank, compute with rounded factors; returns how many."""
    linears = [m for m in blocks.modules() if isinstance(m, ColumnParallelLinear | RowParallelLinear)]
    for linear in linears:
        linear.forward = functools.partial(_forward, linear, Quantizers(recipe, fp8))
    return len(linears)
