"""The Phantom MMDiT in plain PyTorch, as a diffusers model: what a release ships and the parallel model must equal.

Paper 3.2: two streams with separate weights, F_v = [video ; references] and F_t = [text ; CLIP], meet in joint window
attention only. C: model width, N: heads, D: head dim, S: visual tokens, L: text-stream tokens, B: samples of the pack.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from phantom_mega.attention import Windows, resolve_backend, window_attention
from phantom_mega.errors import UserError
from phantom_mega.geometry import PATCH, SampleShape
from phantom_mega.hf.head_parallel import HeadParallel
from phantom_mega.packs import PackLayout
from phantom_mega.rope import apply_rope
from phantom_mega.windows import WindowSpec


def timestep_features(timestep: torch.Tensor, dim: int, max_period: float = 10000.0) -> torch.Tensor:
    """Sinusoidal features, float32 [B, dim], of timesteps [B] in [0, 1] (scaled by 1000, as diffusion models count)."""
    half = dim // 2
    frequency = torch.exp(-math.log(max_period) * torch.arange(half, device=timestep.device) / half)
    angle = 1000.0 * timestep.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, eps: float) -> torch.Tensor:
    """Layer norm without weights, then x * (1 + scale) + shift; all [tokens, C]."""
    return F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale) + shift


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, computed in at least float32 (per-head norm of q and k)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize x [..., dim]."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight


class MLP(nn.Module):
    """Linear, tanh-approximated GELU, Linear."""

    def __init__(self, dim_in: int, dim_hidden: int, dim_out: int):
        super().__init__()
        self.fc1 = nn.Linear(dim_in, dim_hidden)
        self.fc2 = nn.Linear(dim_hidden, dim_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, dim_in] -> [tokens, dim_out]."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Modulation(nn.Module):
    """Learned per-layer offset of the shared timestep modulation ("ada single").

    A module of its own, as every parameter here belongs to a module that is called: offloading waits for that call.
    """

    def __init__(self, rows: int, dim: int):
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(rows, dim))

    def forward(self, base: torch.Tensor, sample: torch.Tensor) -> list[torch.Tensor]:
        """base [B, 6, C], sample [tokens] -> per token: shift, scale, gate of attention, then of the MLP."""
        rows = base[:, : len(self.offset)] + self.offset
        return [row.index_select(0, sample) for row in rows.unbind(1)]


class StreamBlock(nn.Module):
    """One stream's half of a block: its projections, norms, modulation offset and MLP.

    With `qkv_only` (the text stream of the last block, whose output nothing reads) the part after attention is absent.
    """

    def __init__(self, dim: int, heads: int, ffn_dim: int, eps: float, qkv_only: bool = False):
        super().__init__()
        self.heads, self.eps, self.qkv_only = heads, eps, qkv_only
        self.modulation = Modulation(2 if qkv_only else 6, dim)
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.norm_q, self.norm_k = RMSNorm(dim // heads, eps), RMSNorm(dim // heads, eps)
        if not qkv_only:
            self.to_out = nn.Linear(dim, dim)
            self.mlp = MLP(dim, ffn_dim, dim)

    def qkv(self, x: torch.Tensor, modulation: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """x [tokens, C] -> q, k, v, each [tokens, N, D], q and k normalized per head."""
        x = modulate(x, *modulation[:2], self.eps)
        q, k, v = (proj(x).unflatten(-1, (self.heads, -1)) for proj in (self.to_q, self.to_k, self.to_v))
        return self.norm_q(q), self.norm_k(k), v

    def finish(self, x: torch.Tensor, attended: torch.Tensor, modulation: list[torch.Tensor]) -> torch.Tensor:
        """Gated residuals of attention output [tokens, N, D] and of the MLP."""
        gate, shift_mlp, scale_mlp, gate_mlp = modulation[2:]
        x = x + gate * self.to_out(attended.flatten(1))
        return x + gate_mlp * self.mlp(modulate(x, shift_mlp, scale_mlp, self.eps))


class DualStreamBlock(nn.Module):
    """An MMDiT block: both streams, joined in window attention with injected references (paper 3.2)."""

    def __init__(self, dim: int, heads: int, ffn_dim: int, eps: float, last: bool):
        super().__init__()
        self.visual = StreamBlock(dim, heads, ffn_dim, eps)
        self.text = StreamBlock(dim, heads, ffn_dim, eps, qkv_only=last)

    def forward(
        self,
        visual: torch.Tensor,
        text: torch.Tensor,
        base_visual: torch.Tensor,
        base_text: torch.Tensor,
        layout: PackLayout,
        parity: int,
        attend: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """visual [S, C], text [L, C] -> the same shapes.

        Args:
            visual, text: the two streams.
            base_visual, base_text: [B, 6, C], the shared timestep modulation.
            layout: of these tokens.
            parity: 0 for the plain grid of windows, 1 for the shifted one.
            attend: from (q, k, v) of both streams and the windows to the outputs of both.
        """
        windows = layout.windows[parity]
        mod_visual = self.visual.modulation(base_visual, layout.visual_sample)
        mod_text = self.text.modulation(base_text, layout.text_sample)
        q, k, v = self.visual.qkv(visual, mod_visual)
        q, k = (apply_rope(x, windows.cos, windows.sin) for x in (q, k))
        attended_visual, attended_text = attend((q, k, v), self.text.qkv(text, mod_text), windows)
        visual = self.visual.finish(visual, attended_visual, mod_visual)
        if not self.text.qkv_only:
            text = self.text.finish(text, attended_text, mod_text)
        return visual, text


def joint_attention(
    visual: tuple[torch.Tensor, ...], text: tuple[torch.Tensor, ...], windows: Windows, backend: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Joint window attention of q, k and v of both streams, each [tokens, N, D]; returns both streams' outputs."""
    joint = (torch.cat(pair) for pair in zip(visual, text, strict=True))
    return window_attention(*joint, windows, backend).split([len(visual[0]), len(text[0])])


class PhantomTransformer3DModel(ModelMixin, ConfigMixin):
    """Velocity prediction for packs of subject-to-video samples. Arguments are the fields of `ModelConfig`.

    Raises:
        UserError: sizes that do not divide, or rotary axes that do not sum to the head dimension.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["DualStreamBlock"]  # noqa: RUF012 (diffusers reads a list)

    @register_to_config
    def __init__(
        self,
        num_layers: int = 4,
        hidden_size: int = 128,
        num_attention_heads: int = 4,
        ffn_hidden_size: int = 512,
        latent_channels: int = 16,
        text_dim: int = 384,
        clip_dim: int = 64,
        timestep_dim: int = 256,
        rope_axes_dim: list[int] = (8, 12, 12),
        rope_theta: float = 10000.0,
        norm_epsilon: float = 1e-6,
        window_frames: int = 9,
        window_height: int = 0,
        window_width: int = 0,
        window_shift: str = "alternate",
        reference_injection: str = "displace",
        max_references: int = 4,
    ):
        super().__init__()
        check_sizes(hidden_size, num_attention_heads, list(rope_axes_dim))
        self.window_spec = WindowSpec(window_frames, window_height, window_width, window_shift, reference_injection)
        self.attention_backend = "auto"
        self.gradient_checkpointing = False
        self.head_parallel: HeadParallel | None = None
        C, patch_dim = hidden_size, latent_channels * PATCH[1] * PATCH[2]
        self.visual_embedder = nn.Linear(patch_dim, C)
        self.text_embedder = nn.Linear(text_dim, C)
        self.clip_projector = MLP(clip_dim, C, C)
        self.timestep_embedder = nn.Sequential(nn.Linear(timestep_dim, C), nn.SiLU(), nn.Linear(C, C))
        self.visual_modulation = nn.Linear(C, 6 * C)
        self.text_modulation = nn.Linear(C, 6 * C)
        self.blocks = nn.ModuleList(
            DualStreamBlock(C, num_attention_heads, ffn_hidden_size, norm_epsilon, last=i == num_layers - 1)
            for i in range(num_layers)
        )
        self.final_modulation = nn.Linear(C, 2 * C)
        self.final_proj = nn.Linear(C, patch_dim)

    def layout(self, shapes: list[SampleShape], device: torch.device | None = None, **lengths) -> PackLayout:
        """The `PackLayout` of samples for this model, on its device or another; `lengths` as in `PackLayout.build`."""
        config, device = self.config, device or self.device
        return PackLayout.build(
            shapes, self.window_spec, list(config.rope_axes_dim), config.rope_theta, device=device, **lengths
        )

    def enable_head_parallel(self, group: dist.ProcessGroup) -> None:
        """Share every pack with the other ranks of the group, which all call the model alike; for inference.

        Raises:
            UserError: the heads cannot be shared out equally.
        """
        self.head_parallel = HeadParallel(group, self.config.num_attention_heads)

    def condition(self, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Shared modulation of timesteps [B]: visual [B, 6, C], text [B, 6, C], final [B, 2, C] ("ada single")."""
        features = timestep_features(timestep, self.config.timestep_dim).to(self.dtype)
        emb = F.silu(self.timestep_embedder(features))
        heads = (self.visual_modulation, self.text_modulation, self.final_modulation)
        return tuple(head(emb).unflatten(-1, (-1, self.config.hidden_size)) for head in heads)

    def embed_text(self, text: torch.Tensor, clip: torch.Tensor, layout: PackLayout) -> torch.Tensor:
        """F_t [L, C] from caption features [Lt, text_dim] and CLIP features [Lc, clip_dim]; padding is zero."""
        caption = self.text_embedder(text)
        stream = caption.new_zeros(layout.text_seq_length, self.config.hidden_size)
        stream = stream.index_copy(0, layout.text_index, caption)
        return stream.index_copy(0, layout.clip_index, self.clip_projector(clip))

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        image_embeds: torch.Tensor,
        layout: PackLayout,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Predict the velocity of every visual token.

        Args:
            hidden_states: [S, 4 * latent_channels], noisy video tokens and clean reference tokens (`patchify`).
            timestep: [B] in [0, 1], one for each sample.
            encoder_hidden_states: [Lt, text_dim], caption features, sample after sample.
            image_embeds: [Lc, clip_dim], vision features of all references, sample after sample.
            layout: the pack's index tensors (`self.layout(shapes)`).
            return_dict: return `Transformer2DModelOutput` instead of a tuple.

        Returns:
            [S, 4 * latent_channels]; meaningful on video tokens only.
        """
        base_visual, base_text, base_final = self.condition(timestep)
        visual = self.visual_embedder(hidden_states)
        text = self.embed_text(encoder_hidden_states, image_embeds, layout)
        backend = resolve_backend(self.attention_backend, visual.device, visual.dtype)
        attend = functools.partial(joint_attention, backend=backend)
        shared, counts = self.head_parallel, (len(visual), len(text))
        if shared is not None:
            attend = functools.partial(shared.attention, backend=backend, visual_count=counts[0], text_count=counts[1])
            visual, text, layout = shared.part(visual), shared.part(text), shared.layout(layout)
        for i, block in enumerate(self.blocks):
            args = (visual, text, base_visual, base_text, layout, i % 2, attend)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                visual, text = torch.utils.checkpoint.checkpoint(block, *args, use_reentrant=False)
            else:
                visual, text = block(*args)
        shift, scale = (row.index_select(0, layout.visual_sample) for row in base_final.unbind(1))
        velocity = self.final_proj(modulate(visual, shift, scale, self.config.norm_epsilon))
        if shared is not None:
            velocity = shared.whole(velocity, counts[0])
        return Transformer2DModelOutput(sample=velocity) if return_dict else (velocity,)


def check_sizes(hidden_size: int, num_attention_heads: int, rope_axes_dim: list[int]) -> None:
    """Refuse sizes that cannot form heads.

    Raises:
        UserError: names the field and what it must be.
    """
    if hidden_size % num_attention_heads:
        raise UserError(f"hidden_size {hidden_size} is not a multiple of num_attention_heads {num_attention_heads}")
    head_dim = hidden_size // num_attention_heads
    if sum(rope_axes_dim) != head_dim or any(dim % 2 for dim in rope_axes_dim):
        raise UserError(f"rope_axes_dim {rope_axes_dim} must be three even numbers that sum to the head dim {head_dim}")
