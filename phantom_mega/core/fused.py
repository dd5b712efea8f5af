"""The element-wise parts of a block, each one autograd function: they save little, and on a GPU each is one kernel.

Plain functions hold the mathematics, in at least float32 with one rounding at the end; `torch.compile` fuses them on a
GPU (switched off by its own variable, TORCH_COMPILE_DISABLE=1), on a CPU they run as they are. Modulation stays
[B, C] with the sample of each token beside it: it is never expanded to tokens. Its gradients are sums over the tokens
of a sample, computed as matrix products, so without atomics: the same bits in every run.

What is saved for the backward pass, for T tokens of C channels, N heads of D channels on this rank (inputs are those of
the layer before and stay alive only because they are saved here; e: bytes of a number, 2 in bf16):

    modulated_layer_norm   x: e T C, mean and 1/std: 8 T (float32)
    head_norm              x (a view of linear_qkv's output, which so stays whole: 3 e T N D for q, k, v together),
                           1/rms: 4 T N (float32); cos and sin belong to the pack
    bias_gelu              x: e T F, with F the columns of linear_fc1 on this rank
    gated_residual         y: e T C

and by the linears between: their inputs (qkv: e T C, proj: e T N D, fc1: e T C, fc2: e T F), which `recompute.dropped`
takes out. T is a rank's own tokens for norms, residuals and the inputs of qkv and fc1 (with sequence parallelism 1/tp
of all), and all tokens for heads and for F.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

# By default inductor writes what is read more often to memory: the rotated gradient of all heads, in float32.
_COMPILE_OPTIONS = {"realize_reads_threshold": 32}


def fused_on_gpu(function: Callable) -> Callable:
    """Compile `function` for calls whose first argument is on a GPU.

    Sizes of packs vary (samples, and tokens from one stream to the other): a first recompilation makes them dynamic.
    """
    compiled = torch.compile(function, options=_COMPILE_OPTIONS)

    @functools.wraps(function)
    def call(*args):
        if not _on_gpu(args[0]):
            return function(*args)
        # Whether a gradient is wanted, as in a checkpoint's two passes, is no reason to compile once more.
        return compiled(*(arg.detach() if isinstance(arg, torch.Tensor) else arg for arg in args))

    return call


def _on_gpu(x: torch.Tensor) -> bool:
    return x.is_cuda


def implementation() -> str:
    """What serves these operations on this machine, in words."""
    return "torch.compile" if torch.cuda.is_available() and not torch._dynamo.config.disable else "torch"


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def sums_of_samples(sample: torch.Tensor, samples: int, *values: torch.Tensor) -> list[torch.Tensor]:
    """Sum each of `values` [T, C] over the tokens of every sample -> [B, C]; `sample` int64 [T] need not be sorted."""
    member = sample == torch.arange(samples, device=sample.device)[:, None]
    return [_product(member.to(each.dtype), each) for each in values]


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b, summed in float32 and rounded once (by itself a GPU may add partial sums in half precision)."""
    if b.is_cuda and b.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(a, b, out_dtype=torch.float32).to(b.dtype)
    return a @ b


# Layer norm and modulation ------------------------------------------------------------------------------------------


def _modulated(x, mean, rstd, shift, scale, sample):
    scale, shift = (_wide(row).index_select(0, sample) for row in (scale, shift))
    return ((_wide(x) - mean) * rstd * (1 + scale) + shift).to(x.dtype)


@fused_on_gpu
def _modulated_norm(x, shift, scale, sample, eps):
    wide = _wide(x)
    mean = wide.mean(-1, keepdim=True)
    rstd = torch.rsqrt((wide - mean).square().mean(-1, keepdim=True) + eps)
    return _modulated(x, mean, rstd, shift, scale, sample), mean, rstd


_modulated_again = fused_on_gpu(_modulated)


@fused_on_gpu
def _modulated_backward(grad, x, mean, rstd, scale, sample):
    """Gradient of x, and that of each token's scale."""
    normed, wide = (_wide(x) - mean) * rstd, _wide(grad)
    inner = wide * (1 + _wide(scale).index_select(0, sample))
    along = inner.mean(-1, keepdim=True) + normed * (inner * normed).mean(-1, keepdim=True)
    return ((inner - along) * rstd).to(x.dtype), (wide * normed).to(grad.dtype)


class _ModulatedLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, shift, scale, sample, eps):
        y, mean, rstd = _modulated_norm(x, shift, scale, sample, eps)
        ctx.save_for_backward(x, mean, rstd, shift, scale, sample)
        ctx.again = lambda saved: _modulated_again(*saved)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, mean, rstd, shift, scale, sample = ctx.saved_tensors
        grad_x, grad_scale = _modulated_backward(grad, x, mean, rstd, scale, sample)
        return grad_x, *sums_of_samples(sample, len(shift), grad, grad_scale), None, None


def modulated_layer_norm(
    x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, sample: torch.Tensor, eps: float
) -> torch.Tensor:
    """Layer norm without weights, then x * (1 + scale) + shift of each token's sample.

    Args:
        x: [T, C].
        shift, scale: [B, C].
        sample: int64 [T].
        eps: added to the variance.

    Returns:
        [T, C].
    """
    return _ModulatedLayerNorm.apply(x, shift, scale, sample, eps)


# Gated residual -----------------------------------------------------------------------------------------------------


@fused_on_gpu
def _gated(x, y, bias, gate, sample):
    return (_wide(x) + _wide(gate).index_select(0, sample) * (_wide(y) + _wide(bias))).to(x.dtype)


@fused_on_gpu
def _gated_backward(grad, y, bias, gate, sample):
    """Gradients of y, and of each token's gate."""
    wide = _wide(grad)
    grad_y = wide * _wide(gate).index_select(0, sample)
    return grad_y.to(y.dtype), (wide * (_wide(y) + _wide(bias))).to(grad.dtype)


class _GatedResidual(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, bias, gate, sample):
        ctx.save_for_backward(y, bias, gate, sample)
        return _gated(x, y, bias, gate, sample)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        y, bias, gate, sample = ctx.saved_tensors
        grad_y, grad_gate = _gated_backward(grad, y, bias, gate, sample)
        return grad, grad_y, grad_y.sum(0), *sums_of_samples(sample, len(gate), grad_gate), None


def gated_residual(
    x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor, gate: torch.Tensor, sample: torch.Tensor
) -> torch.Tensor:
    """x + gate * (y + bias) with the gate [B, C] of each token's sample.

    Args:
        x, y: [T, C], the residual stream and the output of a linear.
        bias: [C], of that linear.
        gate: [B, C].
        sample: int64 [T].
    """
    return _GatedResidual.apply(x, y, bias, gate, sample)


# Norm and rotation of heads -----------------------------------------------------------------------------------------


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate channel pairs of x [T, N, D] by (cos, sin) [T, D/2], as `rope.apply_rope`, without a rounding."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos.to(x.dtype)[:, None], sin.to(x.dtype)[:, None]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


@fused_on_gpu
def _head_norm(x, weight, cos, sin, eps):
    wide = _wide(x)
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    y = wide * rstd * _wide(weight)
    return (y if cos is None else _rotate(y, cos, sin)).to(x.dtype), rstd


@fused_on_gpu
def _head_norm_backward(grad, x, weight, rstd, cos, sin):
    grad, normed = _wide(grad), _wide(x) * rstd
    if cos is not None:
        grad = _rotate(grad, cos, -sin)
    inner = grad * _wide(weight)
    grad_x = rstd * (inner - normed * (inner * normed).mean(-1, keepdim=True))
    return grad_x.to(x.dtype), (grad * normed).sum((0, 1)).to(weight.dtype)


class _HeadNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, cos, sin, eps):
        y, rstd = _head_norm(x, weight, cos, sin, eps)
        ctx.save_for_backward(x, weight, rstd, cos, sin)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return *_head_norm_backward(grad, *ctx.saved_tensors), None, None, None


def head_norm(
    x: torch.Tensor, weight: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor] | None, eps: float
) -> torch.Tensor:
    """Root-mean-square norm of every head, then the rotary embedding, if there is one.

    Args:
        x: [T, N, D], contiguous over D.
        weight: [D].
        rotation: (cos, sin), each [T, D/2] (`rope.rope_table`); None for tokens without a position.
        eps: added to the mean square.

    Returns:
        [T, N, D].
    """
    return _HeadNorm.apply(x, weight, *(rotation or (None, None)), eps)


# GELU ---------------------------------------------------------------------------------------------------------------


@fused_on_gpu
def _bias_gelu(x, bias):
    return F.gelu(_wide(x) + _wide(bias), approximate="tanh").to(x.dtype)


@fused_on_gpu
def _bias_gelu_backward(grad, x, bias):
    return torch.ops.aten.gelu_backward(_wide(grad), _wide(x) + _wide(bias), approximate="tanh").to(x.dtype)


class _BiasGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bias):
        ctx.save_for_backward(x, bias)
        ctx.again = lambda saved: _bias_gelu(*saved)
        return _bias_gelu(x, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grad_x = _bias_gelu_backward(grad, *ctx.saved_tensors)
        return grad_x, grad_x.sum(0)


def bias_gelu(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Tanh-approximated GELU of x [T, F] + bias [F]; megatron-core's own computes in bf16."""
    return _BiasGelu.apply(x, bias)
