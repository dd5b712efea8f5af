"""Window attention by Triton kernels: shared keys and values are read in place, with gradients.

What it computes, and why with fewer FLOPs than repeated windows: `window_forward.py`, `window_backward.py`.

Memory kept for the backward pass beside q, k, v and the output (`kept_bytes`), for N heads of D channels in e bytes:
o_iw of the shared rows, e N D sum_b H_b W_b, and log-sum-exps, 4 N (V + H + sum_b H_b W_b) bytes. During the forward
pass 4 N D H more. Temporal windows are few (2 to 7), so this stays below what repeating the shared rows takes:
e N D (V + sum_b H_b W_b) for each of q, k, v and the output. With many spatial windows both grow alike.
"""

from __future__ import annotations

import math

import torch
from torch.autograd.function import once_differentiable

from phantom_mega.attention import Windows
from phantom_mega.errors import UserError
from phantom_mega.kernels.blocks import HEAD_DIMS, INTERPRETED, Blocks, chosen
from phantom_mega.kernels.tiles import TileIndex, count_slots
from phantom_mega.kernels.window_backward import delta_kernel, dkv_kernel, dq_kernel
from phantom_mega.kernels.window_forward import attend_kernel, mean_kernel
from phantom_mega.windows import WindowPlan

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def triton_window_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, windows: Windows) -> torch.Tensor:
    """Joint attention of all windows of a pack, merged; what `attention.window_attention` returns.

    Args:
        q, k, v: [J, N, D] of one dtype in BF16, FP16 or FP32 (exact, without TF32), D one of 16, 32, 64, 128. A copy is
            made of what is not contiguous.
        windows: the layer's index arrays.

    Returns:
        [J, N, D]; zero for padding. The same inputs give the same bits.

    Raises:
        UserError: a head size or dtype that the kernels do not have, or no GPU.
    """
    if q.shape[-1] not in HEAD_DIMS:
        raise UserError(
            f"attention_backend=triton has heads of {', '.join(map(str, HEAD_DIMS))} channels and not of {q.shape[-1]}"
            "; use another attention_backend, or another num_attention_heads"
        )
    if q.dtype not in DTYPES or not q.dtype == k.dtype == v.dtype:
        raise UserError(
            f"attention_backend=triton needs q, k and v alike in bf16, fp16 or fp32; they are in "
            f"{q.dtype}, {k.dtype}, {v.dtype}"
        )
    if q.device.type != "cuda" and not INTERPRETED:
        raise UserError(f"attention_backend=triton needs a GPU; the tensors are on {q.device.type}: use sdpa")
    save = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    blocks = chosen(q.element_size())
    with torch.cuda.device_of(q):
        return _WindowAttention.apply(q.contiguous(), k.contiguous(), v.contiguous(), windows, blocks, save)


class _WindowAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, windows: Windows, blocks: dict[str, Blocks], save: bool):
        index = TileIndex.of(windows, {one.tile for one in blocks.values()})
        out, lse, slot_out = forward(q, k, v, index, blocks, save)
        ctx.save_for_backward(q, k, v, out, lse, slot_out)
        ctx.index, ctx.blocks = index, blocks
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        with torch.cuda.device_of(grad):
            gradients = backward(*ctx.saved_tensors, grad.contiguous(), ctx.index, ctx.blocks)
        return *gradients, None, None, None


def kept_bytes(plan: WindowPlan, heads: int, head_dim: int, itemsize: int) -> int:
    """Bytes kept for the backward pass beside q, k, v and the output, of elements of `itemsize` bytes."""
    slots = count_slots(plan)
    positions = len(plan.video_rows) + len(plan.shared_rows) + slots
    return heads * (itemsize * head_dim * slots + 4 * positions)


def _scales(q: torch.Tensor) -> tuple[float, float]:
    """Factor of the scores, and the same for exponents to base 2."""
    scale = q.shape[-1] ** -0.5
    return scale, scale * math.log2(math.e)


def _walk(blocks: Blocks) -> dict[str, int]:
    """Keyword arguments of a kernel that walks."""
    return {"TILE": blocks.tile, "STEP": blocks.step, "STAGES": blocks.stages, "num_warps": blocks.warps}


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, index: TileIndex, blocks: dict[str, Blocks], save: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run the forward kernels on contiguous q, k, v [J, N, D].

    Returns:
        out [J, N, D]; log-sum-exps to base 2, fp32 [N, V + H + slots], of the shared rows over H alone; o_iw
        [slots, N, D]. Without `save` there is nothing at the slots.
    """
    _, heads, head_dim = q.shape
    length = index.video + index.shared + index.slots
    out = torch.zeros_like(q)
    lse = q.new_empty(heads, length, dtype=torch.float32)
    slot_out = q.new_empty(index.slots if save else 0, heads, head_dim)
    base = q.new_empty(index.shared, heads, head_dim, dtype=torch.float32)
    _, qk_scale = _scales(q)
    tiles, _ = index.tables[blocks["attend"].tile]
    attend_kernel[len(tiles), heads](
        q, k, v, out, base, lse, index.rows, tiles, index.windows, heads, index.video, length, qk_scale,
        HEAD_DIM=head_dim, **_walk(blocks["attend"]),
    )  # fmt: skip
    tiles, shared_tiles = index.tables[blocks["mean"].tile]
    if shared_tiles:
        mean_kernel[shared_tiles, heads](
            q, k, v, out, base, slot_out, lse, index.rows, tiles, index.windows, heads, index.video, index.shared,
            length, qk_scale, HEAD_DIM=head_dim, SAVE=save, **_walk(blocks["mean"]),
        )  # fmt: skip
    return out, lse, slot_out


def backward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    slot_out: torch.Tensor,
    grad: torch.Tensor,
    index: TileIndex,
    blocks: dict[str, Blocks],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v from what `forward` returned and the output's gradient [J, N, D], all contiguous."""
    _, heads, head_dim = q.shape
    length = lse.shape[1]
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    level, delta = torch.empty_like(lse), torch.empty_like(lse)
    scale, qk_scale = _scales(q)
    tiles, _ = index.tables[blocks["delta"].tile]
    delta_kernel[len(tiles), heads](
        out, grad, slot_out, lse, level, delta, index.rows, tiles, index.windows, heads, index.video, index.shared,
        length, HEAD_DIM=head_dim, TILE=blocks["delta"].tile, num_warps=blocks["delta"].warps,
    )  # fmt: skip
    common = (level, delta, index.rows)
    sizes = (index.windows, heads, length, qk_scale, scale)
    tiles, _ = index.tables[blocks["dkv"].tile]
    dkv_kernel[len(tiles), heads](
        q, k, v, grad, dk, dv, *common, tiles, *sizes, HEAD_DIM=head_dim, **_walk(blocks["dkv"])
    )
    tiles, _ = index.tables[blocks["dq"].tile]
    dq_kernel[len(tiles), heads](q, k, v, grad, dq, *common, tiles, *sizes, HEAD_DIM=head_dim, **_walk(blocks["dq"]))
    return dq, dk, dv
