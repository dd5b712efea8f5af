"""The dense window attention that every backend is compared with."""

from __future__ import annotations

import torch

from phantom_mega.geometry import SampleShape
from phantom_mega.windows import WindowSpec, pack_offsets


def dense_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    shapes: list[SampleShape],
    spec: WindowSpec,
    shifted: bool,
    S: int,
) -> torch.Tensor:
    """Written from the paper, frame by frame, with boolean masks over all joint tokens: no index arrays.

    Temporal windows only. q, k, v: [S + L, N, D], S visual tokens with padding, then L of the text stream.
    """
    J = q.shape[0]
    visual_at, text_at = pack_offsets(shapes)
    total, count = torch.zeros_like(q), torch.zeros(J, dtype=q.dtype)
    for i, shape in enumerate(shapes):
        n = shape.references
        if spec.window_frames == 0:
            size = shape.frames
        else:
            size = spec.window_frames - n if spec.reference_injection == "displace" else spec.window_frames
        members = torch.zeros(J, dtype=torch.bool)
        members[visual_at[i] + shape.video_tokens : visual_at[i + 1]] = True
        members[S + text_at[i] : S + text_at[i + 1]] = True
        frame, edges = 0, []
        while frame < shape.frames:
            length = max(size // 2, 1) if shifted and frame == 0 and size < shape.frames else size
            edges.append((frame, min(frame + length, shape.frames)))
            frame = edges[-1][1]
        for first, last in edges:
            window = members.clone()
            start = visual_at[i]
            window[start + first * shape.frame_tokens : start + last * shape.frame_tokens] = True
            scores = torch.einsum("ind,jnd->nij", q, k) / q.shape[-1] ** 0.5
            scores = scores.masked_fill(~window[None, None, :], float("-inf"))
            out = torch.einsum("nij,jnd->ind", scores.softmax(-1), v)
            total = total + torch.where(window[:, None, None], out, 0)
            count = count + window
    return total / count.clamp(min=1)[:, None, None]
