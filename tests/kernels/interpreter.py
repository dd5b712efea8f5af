"""Triton kernels in Triton's interpreter, in a process of its own: the mode is fixed when triton is first imported.

The interpreter of Triton 3.6 computes with NumPy. Three of its parts are mended here, for the process that runs kernels
and for it alone:
- a scalar is an array of one element, which NumPy 2.5 no longer turns into an index;
- `dot` multiplies the bit patterns of bfloat16, which it holds as uint16;
- conversions to bfloat16 are rounded towards zero, where the GPU rounds to the nearest.
"""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch

from phantom_mega.attention import Windows, window_attention
from phantom_mega.windows import WindowPlan


@contextmanager
def interpreter_process():
    """A pool of one process in which kernels are interpreted; submit functions of a module to it."""
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_mend) as pool:
            pool.submit(os.getpid).result()
            del os.environ["TRITON_INTERPRET"]
            yield pool
    finally:
        os.environ.pop("TRITON_INTERPRET", None)


def _mend() -> None:
    import triton.language as tl
    from triton.runtime import interpreter

    torch.set_num_threads(1)
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    patch_tensor, cast = interpreter._patch_lang_tensor, builder.cast_impl

    def widened(x):
        return (x.data.astype(np.uint32) << 16).view(np.float32) if x.dtype.scalar == tl.bfloat16 else x.data

    def patch_lang_tensor(tensor, scope):
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        product = np.matmul(widened(a), widened(b), dtype=d.data.dtype)
        return handle(product + d.data, d.dtype.scalar)

    def cast_impl(self, src, dst_type):
        if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
            rounded = torch.from_numpy(np.ascontiguousarray(src.data)).bfloat16()
            return handle(rounded.view(torch.uint16).numpy(), tl.bfloat16)
        return cast(self, src, dst_type)

    interpreter._patch_lang_tensor, builder.create_dot, builder.cast_impl = patch_lang_tensor, create_dot, cast_impl
    builder.create_fp_to_fp = lambda self, src, dst_type, rounding: cast_impl(self, src, dst_type)


def attention_with_gradients(
    plan: WindowPlan, backend: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grad: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Output [J, N, D] of a backend, and gradients of q, k and v for the output's gradient."""
    windows = Windows.from_plan(plan, [2, 2, 0], 10.0, q.device)
    q, k, v = (x.detach().clone().requires_grad_() for x in (q, k, v))
    out = window_attention(q, k, v, windows, backend)
    out.backward(grad)
    return out.detach(), q.grad, k.grad, v.grad


def same_with_and_without_gradients(
    plan: WindowPlan, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grad: torch.Tensor
) -> tuple[list[torch.Tensor], list[tuple[torch.Tensor, ...]]]:
    """Outputs and gradients of runs that must agree to the bit.

    Outputs: with gradients, without, and with gradients of inputs that are not contiguous. Gradients: twice through one
    graph, and through the third run's.
    """
    windows = Windows.from_plan(plan, [2, 2, 0], 10.0, q.device)
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    outputs = [window_attention(*leaves, windows, "triton")]
    gradients = [torch.autograd.grad(outputs[0], leaves, grad, retain_graph=True) for _ in range(2)]
    with torch.no_grad():
        outputs.append(window_attention(q, k, v, windows, "triton"))
    strided = [torch.stack([x, x], dim=-1)[..., 0].detach().requires_grad_() for x in (q, k, v)]
    outputs.append(window_attention(*strided, windows, "triton"))
    gradients.append(torch.autograd.grad(outputs[-1], strided, torch.stack([grad, grad], dim=-1)[..., 0]))
    return [x.detach() for x in outputs], gradients


def saved_bytes(plan: WindowPlan, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> int:
    """Bytes that the kernels' autograd graph keeps: q, k, v, the output and what else the backward pass needs."""
    windows, sizes = Windows.from_plan(plan, [2, 2, 0], 10.0, q.device), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.nbytes), lambda x: x):
        window_attention(*(x.requires_grad_() for x in (q, k, v)), windows, "triton")
    return sum(sizes)
