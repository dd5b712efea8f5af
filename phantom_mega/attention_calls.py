"""Library attention calls over packed segments that also return the log-sum-exp, and their backward for any given one.

One interface for torch's kernels on a CPU and a GPU. T, K: rows of all queries and of all keys, N: heads, D: head dim.
Every backward uses the `out` and `lse` that it is given, p = exp(s - lse) and dS = p (dP - rowsum(dO * out)), so it may
be told those of a larger softmax of which the call was one part; torch's own ring attention relies on the same
(torch/distributed/tensor/experimental/_context_parallel/_attention.py).
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

aten = torch.ops.aten


@dataclass(frozen=True)
class Segments:
    """Queries of segment i read the keys of segment i, and no others.

    Attributes:
        cu_q, cu_k: int32 [segments + 1], offsets in the packed queries and keys, on the device.
        host_q, host_k: the same on the host.
    """

    cu_q: torch.Tensor
    cu_k: torch.Tensor
    host_q: np.ndarray
    host_k: np.ndarray

    @functools.cached_property
    def max_q(self) -> int:
        """Queries of the longest segment."""
        return int(np.diff(self.host_q).max())

    @functools.cached_property
    def max_k(self) -> int:
        """Keys of the longest segment."""
        return int(np.diff(self.host_k).max())

    @property
    def lacks_keys(self) -> bool:
        """Whether a segment has no key at all."""
        return bool((np.diff(self.host_k) == 0).any())

    def pairs(self) -> list[tuple[slice, slice]]:
        """Rows of the queries and of the keys of every segment."""
        cuts = (list(map(slice, *zip(*itertools.pairwise(x.tolist())))) for x in (self.host_q, self.host_k))
        return list(zip(*cuts, strict=True))


class AttentionCalls(Protocol):
    """What a kernel library gives. All tensors but `lse` come contiguous."""

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: Segments
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """q [T, N, D], k and v [K, N, D] -> out [T, N, D] and lse [N, T] in fp32 (float64 for float64 inputs).

        A query without keys has out 0 and lse -inf.
        """

    def attend_backward(
        self,
        grad: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor,
        segments: Segments,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradients of q, k, v for grad [T, N, D] and the given out [T, N, D] and lse [N, T]."""


class FlashVarlen:
    """torch's variable-length flash attention on a GPU, half precision; K and V are read where they are.

    Whatever `torch.nn.attention.activate_flash_attention_impl` puts behind these operators (FlashAttention-3 where the
    user has built `flash_attn_interface`) serves these calls. Arguments as in torch/nn/attention/varlen.py; windows of
    the kernel's own stay at their defaults, for FlashAttention-4's backward refuses any other value.
    """

    def attend(self, q, k, v, segments):
        """See `AttentionCalls`."""
        at = (segments.cu_q, segments.cu_k, segments.max_q, segments.max_k)
        out, lse, *_ = aten._flash_attention_forward(q, k, v, *at, 0.0, False, False)
        if segments.lacks_keys:  # FlashAttention-2 marks queries without keys by +inf
            lse = lse.masked_fill(lse == torch.inf, -torch.inf)
        return out, lse

    def attend_backward(self, grad, q, k, v, out, lse, segments):
        """See `AttentionCalls`."""
        at = (segments.cu_q, segments.cu_k, segments.max_q, segments.max_k)
        rng = torch.zeros(2, dtype=torch.uint64, device=q.device)  # of dropout, which is 0
        unused = torch.empty(0, device=q.device)
        return aten._flash_attention_backward(grad, q, k, v, out, lse, *at, 0.0, False, rng, unused)


class _OneBySegment:
    """A dense kernel called once for each segment, on views: for libraries without a sound variable-length call."""

    def dense(self, q, k, v):
        """q [1, N, T, D], k and v [1, N, K, D] -> out [1, N, T, D], lse [1, N, T]."""
        raise NotImplementedError

    def dense_backward(self, grad, q, k, v, out, lse):
        """Gradients of q, k and v; shapes as in `dense`."""
        raise NotImplementedError

    def attend(self, q, k, v, segments):
        """See `AttentionCalls`."""
        out = torch.zeros_like(q)
        wide = torch.promote_types(q.dtype, torch.float32)
        lse = q.new_full((q.shape[1], q.shape[0]), -torch.inf, dtype=wide)
        for rows, keys in segments.pairs():
            if rows.start < rows.stop and keys.start < keys.stop:
                part, part_lse = self.dense(*map(_batched, (q[rows], k[keys], v[keys])))
                out[rows], lse[:, rows] = part[0].transpose(0, 1), part_lse[0]
        return out, lse

    def attend_backward(self, grad, q, k, v, out, lse, segments):
        """See `AttentionCalls`."""
        grads = tuple(map(torch.zeros_like, (q, k, v)))
        for rows, keys in segments.pairs():
            if rows.start < rows.stop and keys.start < keys.stop:
                parts = map(_batched, (grad[rows], q[rows], k[keys], v[keys], out[rows]))
                parts = self.dense_backward(*parts, lse[None, :, rows])
                for x, at, part in zip(grads, (rows, keys, keys), parts, strict=True):
                    x[at] = part[0].transpose(0, 1)
        return grads


def _batched(x: torch.Tensor) -> torch.Tensor:
    """[T, N, D] -> [1, N, T, D], a view."""
    return x.transpose(0, 1)[None]


class FlashCPU(_OneBySegment):
    """torch's flash attention on a CPU: float64, float32, bfloat16, float16."""

    def dense(self, q, k, v):
        """See `_OneBySegment`."""
        return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)

    def dense_backward(self, grad, q, k, v, out, lse):
        """See `_OneBySegment`."""
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(grad, q, k, v, out, lse, 0.0, False)


class CuDNN(_OneBySegment):
    """cuDNN's attention on a GPU, half precision, dense.

    Its ragged call exists in torch 2.11 (`_cudnn_attention_forward` with `cum_seq_q`) but builds its plan anew at every
    call and torch itself keeps it switched off (torch/nn/attention/varlen.py). The dense one keeps a plan for each pair
    of lengths: fast where lengths come back, slow at the first of each.
    """

    def dense(self, q, k, v):
        """See `_OneBySegment`."""
        out, lse, *_ = aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)
        return out, lse.reshape(q.shape[:3])  # torch 2.11 has a last axis of 1

    def dense_backward(self, grad, q, k, v, out, lse):
        """See `_OneBySegment`."""
        seed, offset = torch.zeros(2, dtype=torch.int64, device=q.device).unbind()  # of dropout, which is 0
        lengths = (None, None, q.shape[2], k.shape[2])
        # The kernel reads `lse` as if it were contiguous, whatever its strides.
        return aten._scaled_dot_product_cudnn_attention_backward(
            grad, q, k, v, out, lse[..., None].contiguous(), seed, offset, None, *lengths, 0.0, False
        )
