"""Backward kernels of the window attention of `window_forward.py`, by gathering: no atomics, the same bits every time.

With p_iwj = exp(s_ij - lse_iw), dP_ij = dO_i v_j and delta_iw = dO_i o_iw, a shared query i gives

    dV_j = sum_w (p_iwj / W) dO_i,   dS_iwj = (p_iwj / W) (dP_ij - delta_iw),

for a key j of V_w from its one window: ordinary flash attention with lse_iw + log W for its log-sum-exp (its "level"
below). For a shared key j the sum over windows is one term of the same form,

    sum_w exp(s_ij - lse_iw) (dP_ij - delta_iw) = exp(s_ij - L_i) (dP_ij - D_i),
    L_i = -log sum_w exp(-lse_iw),   D_i = sum_w exp(-lse_iw) delta_iw / sum_w exp(-lse_iw),

so shared queries meet shared keys once, whatever W is. A video query is the case W = 1. Each position has a level and a
delta (of shared queries: L_i + log W and D_i, for keys in H), each slot too (for keys in V_w).

delta_iw needs o_iw, which the forward pass keeps: 2 N D sum_b H_b W_b bytes in BF16 (see `window_attention.py`). To
derive it without them takes a walk of shared queries over all keys first, 2 more matrix products there.
"""

from __future__ import annotations

import triton
import triton.language as tl

from phantom_mega.kernels.window_forward import PACK_SIZES, offsets, read, read_index, read_tile


@triton.jit(do_not_specialize=PACK_SIZES)
def delta_kernel(
    out, grad, slot_out, lse, level, delta, rows, tiles, windows, heads, video, shared, lse_length,
    TILE: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """Levels and deltas of all positions and slots, from dO, o and o_iw."""
    start, stop, _, _, window_first, window_last, is_shared, count = read_tile(tiles)
    head, stride = tl.program_id(1), heads * HEAD_DIM
    line = head.to(tl.int64) * lse_length
    lse, level, delta = lse + line, level + line, delta + line
    at = start + tl.arange(0, TILE)
    inside = at < stop
    row = read_index(rows, at, inside, True)
    dout = read(grad + head * HEAD_DIM, row, inside, stride, HEAD_DIM, True).to(tl.float32)
    if is_shared:
        low = tl.full([TILE], float("inf"), dtype=tl.float32)
        weight = tl.zeros([TILE], dtype=tl.float32)
        mean = tl.zeros([TILE], dtype=tl.float32)
        log_count = tl.log2(count.to(tl.float32))
        for window in range(window_first, window_last):
            slot = at + tl.load(windows + 2 * window + 1)
            o = read(slot_out + head * HEAD_DIM, slot - video - shared, inside, stride, HEAD_DIM, True)
            own = tl.sum(dout * o.to(tl.float32), 1)
            own_lse = tl.load(lse + slot, mask=inside, other=0.0)
            tl.store(delta + slot, own, mask=inside)
            tl.store(level + slot, own_lse + log_count, mask=inside)
            new_low = tl.minimum(low, own_lse)
            fade, share = tl.exp2(new_low - low), tl.exp2(new_low - own_lse)
            weight = weight * fade + share
            mean = mean * fade + share * own
            low = new_low
        tl.store(delta + at, mean / weight, mask=inside)
        tl.store(level + at, low - tl.log2(weight) + log_count, mask=inside)
    else:
        o = read(out + head * HEAD_DIM, row, inside, stride, HEAD_DIM, True)
        tl.store(delta + at, tl.sum(dout * o.to(tl.float32), 1), mask=inside)
        tl.store(level + at, tl.load(lse + at, mask=inside, other=0.0), mask=inside)


@triton.jit
def _query_steps(
    query, dout, level, delta, dq, k, v, rows, first, last, stride, qk_scale,
    STEP: tl.constexpr, HEAD_DIM: tl.constexpr, STAGES: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    for start in tl.range(first, last, STEP, num_stages=STAGES):
        at = start + tl.arange(0, STEP)
        inside = at < last
        row = read_index(rows, at, inside, MASKED)
        key = read(k, row, inside, stride, HEAD_DIM, MASKED)
        value = read(v, row, inside, stride, HEAD_DIM, MASKED)
        p = tl.exp2(tl.dot(query, tl.trans(key), input_precision="ieee") * qk_scale - level[:, None])
        if MASKED:
            # A key that is not there has score 0, which may be far above the level.
            p = tl.where(inside[None, :], p, 0.0)
        dp = tl.dot(dout, tl.trans(value), input_precision="ieee")
        ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(key.dtype), key, dq, input_precision="ieee")
    return dq


@triton.jit
def _query_range(
    query, dout, level, delta, dq, k, v, rows, first, last, stride, qk_scale,
    STEP: tl.constexpr, HEAD_DIM: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Add to dq [tile, D] what the keys at positions [first, last) give."""
    full = first + (last - first) // STEP * STEP
    dq = _query_steps(
        query, dout, level, delta, dq, k, v, rows, first, full, stride, qk_scale, STEP, HEAD_DIM, STAGES, False
    )
    return _query_steps(
        query, dout, level, delta, dq, k, v, rows, full, last, stride, qk_scale, STEP, HEAD_DIM, 1, True
    )


@triton.jit(do_not_specialize=PACK_SIZES)
def dq_kernel(
    q, k, v, grad, dq, level, delta, rows, tiles, windows, heads, lse_length, qk_scale, scale,
    TILE: tl.constexpr, STEP: tl.constexpr, HEAD_DIM: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Gradient of the queries: a tile walks H once, then V_w of its windows (of a shared tile: all of the sample)."""
    start, stop, shared_first, shared_last, window_first, window_last, is_shared, _ = read_tile(tiles)
    head, stride = tl.program_id(1), heads * HEAD_DIM
    q, k, v, grad = q + head * HEAD_DIM, k + head * HEAD_DIM, v + head * HEAD_DIM, grad + head * HEAD_DIM
    line = head.to(tl.int64) * lse_length
    level, delta = level + line, delta + line
    at = start + tl.arange(0, TILE)
    inside = at < stop
    row = read_index(rows, at, inside, True)
    query = read(q, row, inside, stride, HEAD_DIM, True)
    dout = read(grad, row, inside, stride, HEAD_DIM, True)
    acc = tl.zeros([TILE, HEAD_DIM], dtype=tl.float32)
    own_level = tl.load(level + at, mask=inside, other=0.0)
    own_delta = tl.load(delta + at, mask=inside, other=0.0)
    acc = _query_range(
        query, dout, own_level, own_delta, acc, k, v, rows, shared_first, shared_last, stride, qk_scale,
        STEP, HEAD_DIM, STAGES,
    )  # fmt: skip
    for window in range(window_first, window_last):
        place = at + tl.where(is_shared, tl.load(windows + 2 * window + 1), 0)
        own_level = tl.load(level + place, mask=inside, other=0.0)
        own_delta = tl.load(delta + place, mask=inside, other=0.0)
        first, last = tl.load(windows + 2 * window), tl.load(windows + 2 * window + 2)
        acc = _query_range(
            query, dout, own_level, own_delta, acc, k, v, rows, first, last, stride, qk_scale,
            STEP, HEAD_DIM, STAGES,
        )  # fmt: skip
    acc = acc * scale
    place = dq + head * HEAD_DIM + offsets(row, stride, HEAD_DIM)
    tl.store(place, acc.to(dq.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _key_steps(
    key, value, dk, dv, q, grad, level, delta, rows, first, last, stride, qk_scale,
    STEP: tl.constexpr, HEAD_DIM: tl.constexpr, STAGES: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    for start in tl.range(first, last, STEP, num_stages=STAGES):
        at = start + tl.arange(0, STEP)
        inside = at < last
        row = read_index(rows, at, inside, MASKED)
        query = read(q, row, inside, stride, HEAD_DIM, MASKED)
        if MASKED:
            # Queries that are not there have no dO and no delta, so they add nothing.
            own_level = tl.load(level + at, mask=inside, other=0.0)
            own_delta = tl.load(delta + at, mask=inside, other=0.0)
        else:
            own_level = tl.load(level + at)
            own_delta = tl.load(delta + at)
        p = tl.exp2(tl.dot(key, tl.trans(query), input_precision="ieee") * qk_scale - own_level[None, :])
        dout = read(grad, row, inside, stride, HEAD_DIM, MASKED)
        dv = tl.dot(p.to(dout.dtype), dout, dv, input_precision="ieee")
        dp = tl.dot(value, tl.trans(dout), input_precision="ieee")
        ds = p * (dp - own_delta[None, :])
        dk = tl.dot(ds.to(query.dtype), query, dk, input_precision="ieee")
    return dk, dv


@triton.jit
def _key_range(
    key, value, dk, dv, q, grad, level, delta, rows, first, last, stride, qk_scale,
    STEP: tl.constexpr, HEAD_DIM: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Add to dk and dv [tile, D] what the queries at positions [first, last) give."""
    full = first + (last - first) // STEP * STEP
    dk, dv = _key_steps(
        key, value, dk, dv, q, grad, level, delta, rows, first, full, stride, qk_scale, STEP, HEAD_DIM, STAGES, False
    )
    return _key_steps(
        key, value, dk, dv, q, grad, level, delta, rows, full, last, stride, qk_scale, STEP, HEAD_DIM, 1, True
    )


@triton.jit(do_not_specialize=PACK_SIZES)
def dkv_kernel(
    q, k, v, grad, dk, dv, level, delta, rows, tiles, windows, heads, lse_length, qk_scale, scale,
    TILE: tl.constexpr, STEP: tl.constexpr, HEAD_DIM: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values: a tile gathers from the video queries of its windows, then from the shared ones."""
    start, stop, shared_first, shared_last, window_first, window_last, is_shared, _ = read_tile(tiles)
    head, stride = tl.program_id(1), heads * HEAD_DIM
    q, k, v, grad = q + head * HEAD_DIM, k + head * HEAD_DIM, v + head * HEAD_DIM, grad + head * HEAD_DIM
    line = head.to(tl.int64) * lse_length
    level, delta = level + line, delta + line
    at = start + tl.arange(0, TILE)
    inside = at < stop
    row = read_index(rows, at, inside, True)
    key = read(k, row, inside, stride, HEAD_DIM, True)
    value = read(v, row, inside, stride, HEAD_DIM, True)
    key_acc = tl.zeros([TILE, HEAD_DIM], dtype=tl.float32)
    value_acc = tl.zeros([TILE, HEAD_DIM], dtype=tl.float32)
    # The windows of a sample follow each other, so the video queries of all of them are one range.
    first, last = tl.load(windows + 2 * window_first), tl.load(windows + 2 * window_last)
    key_acc, value_acc = _key_range(
        key, value, key_acc, value_acc, q, grad, level, delta, rows, first, last, stride, qk_scale,
        STEP, HEAD_DIM, STAGES,
    )  # fmt: skip
    shift = tl.where(is_shared, 0, tl.load(windows + 2 * window_first + 1))
    key_acc, value_acc = _key_range(
        key, value, key_acc, value_acc, q, grad, level + shift, delta + shift, rows, shared_first, shared_last,
        stride, qk_scale, STEP, HEAD_DIM, STAGES,
    )  # fmt: skip
    place = head * HEAD_DIM + offsets(row, stride, HEAD_DIM)
    tl.store(dk + place, (key_acc * scale).to(dk.dtype.element_ty), mask=inside[:, None])
    tl.store(dv + place, value_acc.to(dv.dtype.element_ty), mask=inside[:, None])
