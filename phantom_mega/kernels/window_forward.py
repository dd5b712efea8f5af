"""Forward kernels of window attention that read shared keys and values in place.

A sample has windows w = 1..W with video rows V_w, each in one window, and shared rows H (references, text, CLIP) that
are in all of them. With s_ij = q_i k_j / sqrt(D):

    video query i of window w:  o_i = softmax over V_w and H;
    shared query i:             o_i = (1/W) sum_w o_iw,  o_iw = softmax over V_w and H.

The part over H does not depend on the window: `attend_kernel` walks it once, also for shared queries, whose state there
(normalized output and log-sum-exp, in fp32) `mean_kernel` continues over each V_w. So a sample costs
4 N D (sum_w V_w^2 + 2 V H + H^2) FLOPs, where repeating H into each window costs 4 N D (W - 1) H^2 more.

Positions, slots and tiles: see `tiles.py`. Exponents are to base 2, so log-sum-exps are too. Rows are read by index, so
spatial windows are no special case; each row of a head is contiguous (2 D bytes), which is what a copy needs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from phantom_mega.kernels.tiles import COLUMNS

TILE_COLUMNS = tl.constexpr(COLUMNS)
# Sizes that differ from pack to pack. Triton would compile a kernel anew for each mix of those divisible by 16.
PACK_SIZES = ("video", "shared", "lse_length")


@triton.jit
def read_tile(tiles):
    """The columns of this program's tile."""
    tile = tiles + tl.program_id(0) * TILE_COLUMNS
    start, stop, shared_first, shared_last = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 3)
    window_first, window_last, is_shared, count = (
        tl.load(tile + 4),
        tl.load(tile + 5),
        tl.load(tile + 6),
        tl.load(tile + 7),
    )
    return start, stop, shared_first, shared_last, window_first, window_last, is_shared != 0, count


@triton.jit
def offsets(rows, stride, HEAD_DIM: tl.constexpr):
    """[rows, D] offsets of rows `stride` elements apart, in int64: a long pack has more elements than int32 counts."""
    return rows.to(tl.int64)[:, None] * stride + tl.arange(0, HEAD_DIM)[None, :]


@triton.jit
def read(pointer, rows, inside, stride, HEAD_DIM: tl.constexpr, MASKED: tl.constexpr):
    """[rows, D] of a tensor; zero outside."""
    if MASKED:
        block = tl.load(pointer + offsets(rows, stride, HEAD_DIM), mask=inside[:, None], other=0.0)
    else:
        block = tl.load(pointer + offsets(rows, stride, HEAD_DIM))
    return block


@triton.jit
def read_index(rows, at, inside, MASKED: tl.constexpr):
    """Joint index of positions; 0 outside."""
    return tl.load(rows + at, mask=inside, other=0) if MASKED else tl.load(rows + at)


@triton.jit
def _steps(
    query, acc, top, total, k, v, rows, first, last, stride, qk_scale,
    STEP: tl.constexpr, HEAD_DIM: tl.constexpr, STAGES: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    for start in tl.range(first, last, STEP, num_stages=STAGES):
        at = start + tl.arange(0, STEP)
        inside = at < last
        row = read_index(rows, at, inside, MASKED)
        key = read(k, row, inside, stride, HEAD_DIM, MASKED)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee")
        if MASKED:
            scores = tl.where(inside[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1) * qk_scale)
        p = tl.exp2(scores * qk_scale - new_top[:, None])
        fade = tl.exp2(top - new_top)
        total = total * fade + tl.sum(p, 1)
        value = read(v, row, inside, stride, HEAD_DIM, MASKED)
        acc = tl.dot(p.to(value.dtype), value, acc * fade[:, None], input_precision="ieee")
        top = new_top
    return acc, top, total


@triton.jit
def attend(
    query, acc, top, total, k, v, rows, first, last, stride, qk_scale,
    STEP: tl.constexpr, HEAD_DIM: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Continue an online softmax (sum acc [tile, D], maximum top and sum total [tile]) over positions [first, last)."""
    full = first + (last - first) // STEP * STEP
    acc, top, total = _steps(
        query, acc, top, total, k, v, rows, first, full, stride, qk_scale, STEP, HEAD_DIM, STAGES, False
    )
    return _steps(query, acc, top, total, k, v, rows, full, last, stride, qk_scale, STEP, HEAD_DIM, 1, True)


@triton.jit(do_not_specialize=PACK_SIZES)
def attend_kernel(
    q, k, v, out, base, lse, rows, tiles, windows, heads, video, lse_length, qk_scale,
    TILE: tl.constexpr, STEP: tl.constexpr, HEAD_DIM: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Video tiles: the output, over V_w and H. Shared tiles: the state over H alone, into `base` [H, N, D] in fp32."""
    start, stop, shared_first, shared_last, window, _, is_shared, _ = read_tile(tiles)
    head, stride = tl.program_id(1), heads * HEAD_DIM
    q, k, v, out, base = (q + head * HEAD_DIM, k + head * HEAD_DIM, v + head * HEAD_DIM, out + head * HEAD_DIM,
                          base + head * HEAD_DIM)  # fmt: skip
    at = start + tl.arange(0, TILE)
    inside = at < stop
    row = read_index(rows, at, inside, True)
    query = read(q, row, inside, stride, HEAD_DIM, True)
    acc = tl.zeros([TILE, HEAD_DIM], dtype=tl.float32)
    top = tl.full([TILE], float("-inf"), dtype=tl.float32)
    total = tl.zeros([TILE], dtype=tl.float32)
    acc, top, total = attend(
        query, acc, top, total, k, v, rows, shared_first, shared_last, stride, qk_scale, STEP, HEAD_DIM, STAGES
    )
    first, last = tl.load(windows + 2 * window), tl.load(windows + 2 * window + 2)
    last = tl.where(is_shared, first, last)
    acc, top, total = attend(query, acc, top, total, k, v, rows, first, last, stride, qk_scale, STEP, HEAD_DIM, STAGES)
    acc = acc / total[:, None]
    tl.store(lse + head.to(tl.int64) * lse_length + at, top + tl.log2(total), mask=inside)
    if is_shared:
        tl.store(base + offsets(at - video, stride, HEAD_DIM), acc, mask=inside[:, None])
    else:
        tl.store(out + offsets(row, stride, HEAD_DIM), acc.to(out.dtype.element_ty), mask=inside[:, None])


@triton.jit(do_not_specialize=PACK_SIZES)
def mean_kernel(
    q, k, v, out, base, slot_out, lse, rows, tiles, windows, heads, video, shared, lse_length, qk_scale,
    TILE: tl.constexpr, STEP: tl.constexpr, HEAD_DIM: tl.constexpr, STAGES: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """Shared tiles: continue the state over H in every window, and write the mean.

    With SAVE also o_iw to `slot_out` [slots, N, D] and the log-sum-exps to the slots, for the backward pass.
    """
    start, stop, _, _, window_first, window_last, _, count = read_tile(tiles)
    head, stride = tl.program_id(1), heads * HEAD_DIM
    q, k, v, out, base = (q + head * HEAD_DIM, k + head * HEAD_DIM, v + head * HEAD_DIM, out + head * HEAD_DIM,
                          base + head * HEAD_DIM)  # fmt: skip
    lse += head.to(tl.int64) * lse_length
    at = start + tl.arange(0, TILE)
    inside = at < stop
    row = read_index(rows, at, inside, True)
    query = read(q, row, inside, stride, HEAD_DIM, True)
    shared_lse = tl.load(lse + at, mask=inside, other=0.0)
    mean = tl.zeros([TILE, HEAD_DIM], dtype=tl.float32)
    for window in range(window_first, window_last):
        # Read again for each window (it stays in L2): held in registers beside `mean` and `acc` it would spill.
        acc = read(base, at - video, inside, stride, HEAD_DIM, True)
        total = tl.full([TILE], 1.0, dtype=tl.float32)
        first, last = tl.load(windows + 2 * window), tl.load(windows + 2 * window + 2)
        acc, top, total = attend(
            query, acc, shared_lse, total, k, v, rows, first, last, stride, qk_scale, STEP, HEAD_DIM, STAGES
        )
        acc = acc / total[:, None]
        mean += acc
        if SAVE:
            slot = at + tl.load(windows + 2 * window + 1)
            tl.store(lse + slot, top + tl.log2(total), mask=inside)
            place = slot_out + head * HEAD_DIM + offsets(slot - video - shared, stride, HEAD_DIM)
            tl.store(place, acc.to(slot_out.dtype.element_ty), mask=inside[:, None])
    mean = mean / count
    tl.store(out + offsets(row, stride, HEAD_DIM), mean.to(out.dtype.element_ty), mask=inside[:, None])
