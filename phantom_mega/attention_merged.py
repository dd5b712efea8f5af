"""Window attention out of library attention calls merged by log-sum-exp: no key or value is copied into a window.

A sample has windows w = 1..W, each with its own video rows V_w, and rows H that all windows share (references, text,
CLIP). A window's softmax runs over V_w and H; a video row is in one window, a shared row takes the mean of its W
outputs. Write s_ij for the scaled scores, o and l for a call's output and log-sum-exp. Four calls do all windows:

    a) V_w reads V_w        b) V reads H        c) H reads H, once for all windows        d) H reads V_w, for every w

where the usual way repeats H in every window and so computes c) W times. Two calls over disjoint keys merge into one
softmax (Dao, FlashAttention, arXiv 2205.14135; Liu, Ring Attention, arXiv 2310.01889):

    L = log(exp(l_1) + exp(l_2)),    O = exp(l_1 - L) o_1 + exp(l_2 - L) o_2

so O_i, L_i of a video row come from a) and b), and O_iw, L_iw of a shared row in window w from c) and d).

Backward. With the merged O and L, p_ij = exp(s_ij - L_i) are the probabilities of the whole softmax, and each call's
own backward, dV_j = sum_i p_ij dO_i and dS_ij = p_ij (dP_ij - dO_i . O_i) with dP_ij = dO_i . v_j, gives its keys'
exact part; a), b) are that. A shared row has out_i = (1/W) sum_w O_iw. The factor 1/W goes into the log-sum-exp:
p_ijw / W = exp(s_ij - (L_iw + log W)), so d) is called with L_iw + log W, O_iw and dO_i as it is. In c) keys are the
same for every w and the sum over windows closes:

    sum_w p_ijw / W             = exp(s_ij - L'_i),                    L'_i = log W - log sum_w exp(-L_iw)
    sum_w p_ijw / W (dO_i.O_iw) = exp(s_ij - L'_i) (dO_i . O'_i),      O'_i = sum_w softmax_w(-L_iw) O_iw

hence one backward call of c) with O', L' in place of O, L gives dQ, dK and dV summed over all windows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from phantom_mega.attention_calls import AttentionCalls, CuDNN, FlashCPU, FlashVarlen, Segments

if TYPE_CHECKING:
    from phantom_mega.attention import Windows


def merge(
    out_1: torch.Tensor,
    lse_1: torch.Tensor,
    out_2: torch.Tensor,
    lse_2: torch.Tensor,
    into: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One softmax of two over disjoint keys.

    Args:
        out_1, out_2: [..., N, D] that broadcast against each other.
        lse_1, lse_2: [..., N] in the wide type; -inf where a part has no key, finite in one of the two.
        into: where the output goes, in its type; by default new, in the wide type.

    Returns:
        The output and its log-sum-exp.
    """
    lse = torch.logaddexp(lse_1, lse_2)
    first = out_1 * (lse_1 - lse).exp()[..., None]
    return torch.addcmul(first, out_2, (lse_2 - lse).exp()[..., None], out=first if into is None else into), lse


@dataclass(frozen=True)
class _Rows:
    """Rows of the joint sequence: a view where they follow each other, else picked by index."""

    index: torch.Tensor
    span: slice | None

    @classmethod
    def of(cls, host: np.ndarray, index: torch.Tensor) -> _Rows:
        """Rows from their numbers on the host and on the device."""
        follows = len(host) > 0 and np.array_equal(host, np.arange(host[0], host[0] + len(host)))
        return cls(index, slice(int(host[0]), int(host[0]) + len(host)) if follows else None)

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """x [J, ...] -> the rows."""
        return x.index_select(0, self.index) if self.span is None else x[self.span]

    def slot(self, x: torch.Tensor) -> torch.Tensor:
        """A place to write the rows of x to before `put`."""
        return x.new_empty(len(self.index), *x.shape[1:]) if self.span is None else x[self.span]

    def put(self, x: torch.Tensor, values: torch.Tensor) -> None:
        """Write what was put in a slot to the rows of x."""
        if self.span is None:
            x.index_copy_(0, self.index, values)


@dataclass(frozen=True)
class _Layout:
    """The four calls of a pack.

    Attributes:
        video, shared: rows of the joint sequence.
        own, to_shared, among_shared, from_shared: calls a, b, c, d. Queries of d are the shared rows of a sample once
            for each of its windows, [W, H] rows flattened.
        samples: rows among the shared ones, rows among the queries of d, and W of every sample.
    """

    video: _Rows
    shared: _Rows
    own: Segments
    to_shared: Segments
    among_shared: Segments
    from_shared: Segments
    samples: tuple[tuple[slice, slice, int], ...]

    @classmethod
    def of(cls, windows: Windows) -> _Layout:
        """From a plan, whose offsets on the host spare any wait for the device."""
        plan = windows.plan
        # A window's rows are its own and then the shared ones, so these are the offsets of the latter alone.
        repeated, repeated_host = windows.cu_seqlens - windows.cu_video, plan.cu_seqlens - plan.cu_video
        sampled, sampled_host = windows.cu_video[windows.cu_windows], plan.cu_video[plan.cu_windows]
        shared, video = (windows.cu_shared, plan.cu_shared), (windows.cu_video, plan.cu_video)
        samples = []
        for i, count in enumerate(np.diff(plan.cu_windows).tolist()):
            start, stop = plan.cu_shared[i : i + 2].tolist()
            at = int(repeated_host[plan.cu_windows[i]])
            samples.append((slice(start, stop), slice(at, at + count * (stop - start)), count))

        def segments(queries, keys) -> Segments:
            return Segments(queries[0], keys[0], queries[1], keys[1])

        return cls(
            video=_Rows.of(plan.video_rows, windows.video_rows),
            shared=_Rows.of(plan.shared_rows, windows.shared_rows),
            own=segments(video, video),
            to_shared=segments((sampled, sampled_host), shared),
            among_shared=segments(shared, shared),
            from_shared=segments((repeated, repeated_host), video),
            samples=tuple(samples),
        )

    def repeat(self, x: torch.Tensor) -> torch.Tensor:
        """Shared rows x [H, N, D] -> each sample's once for each of its windows."""
        return torch.cat([x[rows].expand(count, -1, -1, -1).flatten(0, 1) for rows, _, count in self.samples])

    def by_window(self, out: torch.Tensor, lse: torch.Tensor) -> list[tuple[slice, torch.Tensor, torch.Tensor]]:
        """Rows among the shared ones, and views of a sample's out [W, H, N, D] and lse [W, H, N]."""
        return [
            (rows, out[at].unflatten(0, (count, -1)), lse[:, at].unflatten(1, (count, -1)).permute(1, 2, 0))
            for rows, at, count in self.samples
        ]


class _MergedAttention(torch.autograd.Function):
    """See the head of this file. q, k, v and the output: [J, N, D]."""

    @staticmethod
    def forward(ctx, q, k, v, windows: Windows, calls: AttentionCalls):
        ctx.calls, ctx.layout = calls, (layout := _Layout.of(windows))
        q, k, v = (x.contiguous() for x in (q, k, v))
        result = torch.zeros_like(q)
        q_v, k_v, v_v = map(layout.video.take, (q, k, v))
        q_s, k_s, v_s = map(layout.shared.take, (q, k, v))
        out, lse = calls.attend(q_v, k_v, v_v, layout.own)
        video = layout.video.slot(result)
        if len(q_s):
            other, other_lse = calls.attend(q_v, k_s, v_s, layout.to_shared)
            _, lse = merge(out, lse.T, other, other_lse.T, into=video)
            lse = lse.T.contiguous()
            window_out, window_lse, mean = _shared_forward(layout, calls, q_s, k_s, v_s, k_v, v_v)
            result.index_copy_(0, layout.shared.index, mean)
        else:
            video.copy_(out)
            window_out, window_lse = q_s, lse[:, :0]
        layout.video.put(result, video)
        ctx.save_for_backward(q, k, v, result, lse, window_out, window_lse)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k, v, result, lse, window_out, window_lse = ctx.saved_tensors
        layout, calls = ctx.layout, ctx.calls
        grad = grad.contiguous()
        grad_v, q_v, k_v, v_v, out_v = map(layout.video.take, (grad, q, k, v, result))
        video = calls.attend_backward(grad_v, q_v, k_v, v_v, out_v, lse, layout.own)
        grad_s, q_s, k_s, v_s = map(layout.shared.take, (grad, q, k, v))
        grads = tuple(map(torch.zeros_like, (q, k, v)))
        if len(q_s):
            dq, dk_s, dv_s = calls.attend_backward(grad_v, q_v, k_s, v_s, out_v, lse, layout.to_shared)
            among, (dk, dv) = _shared_backward(
                layout, calls, grad_s, (q_s, k_s, v_s), (k_v, v_v), (window_out, window_lse)
            )
            _add_rows(layout.video, grads, video, (dq, dk, dv))
            _add_rows(layout.shared, grads, among, (torch.zeros_like(q_s), dk_s, dv_s))
        else:
            _add_rows(layout.video, grads, video, map(torch.zeros_like, video))
        return *grads, None, None


def _shared_forward(layout: _Layout, calls: AttentionCalls, q, k, v, k_video, v_video):
    """Calls c and d: per window out [sum W H, N, D] and lse [N, sum W H], and their mean over windows [H, N, D]."""
    among, among_lse = calls.attend(q, k, v, layout.among_shared)
    out, lse = calls.attend(layout.repeat(q), k_video, v_video, layout.from_shared)
    for rows, window_out, window_lse in layout.by_window(out, lse):
        merged, merged_lse = merge(among[rows], among_lse.T[rows], window_out, window_lse)
        among[rows] = merged.mean(0)
        window_out.copy_(merged)
        window_lse.copy_(merged_lse)
    return out, lse, among


def _shared_backward(layout: _Layout, calls: AttentionCalls, grad, shared, video, merged):
    """Backward of c and d: gradients of the shared q, k, v without call b's part, and of the video k, v from d."""
    q, k, v = shared
    window_out, window_lse = merged
    mean_out = torch.empty_like(q)
    mean_lse = window_lse.new_empty(q.shape[1], q.shape[0])
    scaled_lse = torch.empty_like(window_lse)
    for (rows, out, lse), (_, _, scaled) in zip(
        layout.by_window(window_out, window_lse), layout.by_window(window_out, scaled_lse), strict=True
    ):
        scaled.copy_(lse + math.log(len(lse)))
        mean_out[rows] = ((-lse).softmax(0)[..., None] * out).sum(0)
        mean_lse[:, rows] = (math.log(len(lse)) - (-lse).logsumexp(0)).T
    dq, dk, dv = calls.attend_backward(grad, q, k, v, mean_out, mean_lse, layout.among_shared)
    repeated = (layout.repeat(grad), layout.repeat(q), *video, window_out, scaled_lse)
    dq_windows, *video_grads = calls.attend_backward(*repeated, layout.from_shared)
    for rows, part, _ in layout.by_window(dq_windows, scaled_lse):
        dq[rows] += part.sum(0, dtype=scaled_lse.dtype)
    return (dq, dk, dv), video_grads


def _add_rows(rows: _Rows, grads, first, second) -> None:
    """Write the sums of two parts to rows of the gradients."""
    for x, one, other in zip(grads, first, second, strict=True):
        slot = rows.slot(x)
        torch.add(one, other, out=slot)
        rows.put(x, slot)


def merged_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, windows: Windows, calls: AttentionCalls | None = None
) -> torch.Tensor:
    """`attention.window_attention` by merged calls; q, k, v and the result are [J, N, D].

    Args:
        windows: the layer's index arrays.
        calls: whose kernels; by default torch's flash attention of the device.
    """
    if calls is None:
        calls = FlashVarlen() if q.is_cuda else FlashCPU()
    return _MergedAttention.apply(q, k, v, windows, calls)


def merged_cudnn_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, windows: Windows) -> torch.Tensor:
    """`merged_attention` on cuDNN's kernels."""
    return merged_attention(q, k, v, windows, CuDNN())
