"""Window attention through index arrays: gather, one variable-length attention, weighted scatter back.

J: joint tokens (visual, then text stream), G: rows of all windows, N: heads, D: head dim. The backends compute the same
and differ in speed: `sdpa` runs anywhere, `varlen` is torch's flash attention, `te` is Transformer Engine's `thd`.
These gather all windows' rows, so what windows share is copied into each. `merged` copies no key or value: it merges
torch's flash attention of a window's own rows and of the shared ones, on a CPU and a GPU (`attention_merged.py`);
`merged_cudnn` does so on cuDNN's kernels. `triton` is this project's own kernel, which reads shared rows in place and
compares them with each other once and not once a window (`kernels/`).
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from phantom_mega.errors import UserError
from phantom_mega.rope import rope_table
from phantom_mega.windows import WindowPlan


@dataclass(frozen=True)
class Windows:
    """A `WindowPlan` as tensors on the device, with the rotation of every visual token.

    Attributes:
        gather: int64 [G].
        cu_seqlens: int32 [windows + 1].
        lengths: rows of every window, on the host (what a per-window loop splits by).
        merge_weight: float64 [G].
        cos, sin: float32 [S, D/2].
        max_seqlen: rows of the longest window.
        video_rows: int64 [V], as the plan's.
        shared_rows: int64 [H], as the plan's.
        cu_video, cu_shared, cu_windows: int32, as the plan's, on the device.
        plan: the arrays themselves, on the host.
        cache: what a backend makes of the plan once for all layers, by the backend's own keys.
    """

    gather: torch.Tensor
    cu_seqlens: torch.Tensor
    lengths: tuple[int, ...]
    merge_weight: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    max_seqlen: int
    video_rows: torch.Tensor
    shared_rows: torch.Tensor
    cu_video: torch.Tensor
    cu_shared: torch.Tensor
    cu_windows: torch.Tensor
    plan: WindowPlan
    cache: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def from_plan(
        cls, plan: WindowPlan, axes_dim: list[int], theta: float, device: torch.device | str = "cpu"
    ) -> Windows:
        """Move a plan to the device and compute its rotations there."""
        cos, sin = rope_table(torch.from_numpy(plan.positions).to(device), axes_dim, theta)
        names = (
            "gather",
            "cu_seqlens",
            "merge_weight",
            "video_rows",
            "shared_rows",
            "cu_video",
            "cu_shared",
            "cu_windows",
        )
        return cls(
            lengths=tuple(np.diff(plan.cu_seqlens).tolist()),
            cos=cos,
            sin=sin,
            max_seqlen=plan.max_seqlen,
            plan=plan,
            **{name: torch.from_numpy(getattr(plan, name)).to(device) for name in names},
        )


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, windows: Windows) -> torch.Tensor:
    """One `scaled_dot_product_attention` per window."""
    outputs = []
    for parts in zip(*(x.split(windows.lengths) for x in (q, k, v)), strict=True):
        query, key, value = (x.transpose(0, 1)[None] for x in parts)
        outputs.append(F.scaled_dot_product_attention(query, key, value)[0].transpose(0, 1))
    return torch.cat(outputs)


def _varlen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, windows: Windows) -> torch.Tensor:
    """torch's own variable-length flash attention; half precision on a GPU only."""
    from torch.nn.attention.varlen import varlen_attn

    cu, longest = windows.cu_seqlens, windows.max_seqlen
    return varlen_attn(q, k, v, cu, cu, longest, longest)


@functools.lru_cache(maxsize=4)
def _te_module(heads: int, head_dim: int):
    import transformer_engine.pytorch as te

    return te.DotProductAttention(heads, head_dim, attn_mask_type="padding", qkv_format="thd")


def _te(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, windows: Windows) -> torch.Tensor:
    """Transformer Engine's attention over packed sequences, in bf16 also where the linears are in FP8."""
    try:
        import transformer_engine.pytorch as te
    except ImportError:
        raise UserError("attention_backend=te needs Transformer Engine (extra `te`); use varlen") from None
    cu, longest = windows.cu_seqlens, windows.max_seqlen
    # One module serves all layers: under an open FP8 context it would keep scales, and mix those of all layers.
    with te.autocast(enabled=False):
        out = _te_module(q.shape[1], q.shape[2])(
            q, k, v, cu_seqlens_q=cu, cu_seqlens_kv=cu, max_seqlen_q=longest, max_seqlen_kv=longest
        )
    return out.reshape(q.shape)


def _gathered(attend: Callable) -> Callable:
    """A backend from attention over the rows of all windows: gather before it, weighted mean after it."""

    def joint(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, windows: Windows) -> torch.Tensor:
        rows = attend(*(x.index_select(0, windows.gather) for x in (q, k, v)), windows)
        return _MergeRows.apply(rows, windows.gather, windows.merge_weight, len(q))

    return joint


class _MergeRows(torch.autograd.Function):
    """Rows of all windows [G, N, D], weighted and added up to tokens [J, N, D] in at least float32.

    `index_add` itself would keep the weighted rows for a backward pass that does not read them.
    """

    @staticmethod
    def forward(ctx, rows: torch.Tensor, gather: torch.Tensor, merge_weight: torch.Tensor, tokens: int) -> torch.Tensor:
        wide = torch.promote_types(rows.dtype, torch.float32)
        ctx.save_for_backward(gather, merge_weight)
        weighted = rows * merge_weight.to(wide)[:, None, None]
        return weighted.new_zeros(tokens, *rows.shape[1:]).index_add_(0, gather, weighted).to(rows.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gather, merge_weight = ctx.saved_tensors
        wide = torch.promote_types(grad.dtype, torch.float32)
        rows = grad.index_select(0, gather) * merge_weight.to(wide)[:, None, None]
        return rows.to(grad.dtype), None, None, None


def _in_a_file_of_its_own(backend: str, module: str, function: str) -> Callable:
    """A backend that is imported at its first call: a release's single file does without it."""

    def joint(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, windows: Windows) -> torch.Tensor:
        try:
            found = importlib.import_module(f"phantom_mega.{module}")
        except ModuleNotFoundError as error:
            reasons = {"phantom_mega": "comes with phantom_mega", "triton": "needs the package triton"}
            reason = reasons.get((error.name or "").split(".")[0])
            if reason is None:
                raise
            raise UserError(
                f"attention_backend={backend} {reason}, which is not installed here; use sdpa or varlen"
            ) from None
        return getattr(found, function)(q, k, v, windows)

    return joint


# Each maps q, k, v [J, N, D] and the windows to [J, N, D].
# Those that gather every window's rows, shared ones repeated; the others read shared rows in place.
GATHERED = {"sdpa": _sdpa, "varlen": _varlen, "te": _te}
BACKENDS = {
    **{name: _gathered(attend) for name, attend in GATHERED.items()},
    "merged": _in_a_file_of_its_own("merged", "attention_merged", "merged_attention"),
    "merged_cudnn": _in_a_file_of_its_own("merged_cudnn", "attention_merged", "merged_cudnn_attention"),
    "triton": _in_a_file_of_its_own("triton", "kernels.window_attention", "triton_window_attention"),
}


def check_backend(name: str) -> None:
    """Raises:
    UserError: neither `auto` nor in `BACKENDS`.
    """
    if name not in ("auto", *BACKENDS):
        raise UserError(f"attention_backend={name!r} is unknown; use one of auto, {', '.join(BACKENDS)}")


def resolve_backend(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """The backend that `auto` stands for: torch's flash attention in half precision on a GPU, else SDPA.

    `auto` never is one of those without copies, until a benchmark on a GPU has shown that they are faster.

    Raises:
        UserError: an unknown name, or a backend that cannot run on this device in this precision.
    """
    check_backend(name)
    half_on_gpu = device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)
    if name == "auto":
        return "varlen" if half_on_gpu else "sdpa"
    fp32_on_gpu = device.type == "cuda" and dtype == torch.float32
    if (
        name == "sdpa"
        or half_on_gpu
        or (name == "merged" and device.type == "cpu")
        or (name == "triton" and fp32_on_gpu)
    ):
        return name
    raise UserError(f"attention_backend={name} needs a GPU and bf16; on {device.type} in {dtype} use sdpa")


def window_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, windows: Windows, backend: str = "sdpa"
) -> torch.Tensor:
    """Joint attention of all windows of a pack, merged back to token order.

    Args:
        q, k, v: [J, N, D], visual queries and keys already rotated.
        windows: the layer's index arrays.
        backend: a name in `BACKENDS`.

    Returns:
        [J, N, D]: video tokens take the output of their window, shared tokens the mean over their windows, padding
        tokens zero.
    """
    return BACKENDS[backend](q, k, v, windows)
