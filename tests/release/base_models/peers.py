"""Small base models with random weights: diffusers' own HunyuanVideo, and SeedVR's NaDiT written anew.

`NaDiT` follows the facts of ByteDance-Seed/SeedVR (models/dit and models/dit_v2): names and shapes of its tensors, the
order of their rows, and what is computed. Where this project computes something else, a switch makes it do that too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import HunyuanVideoTransformer3DModel
from torch import nn


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0, std: float = 0.2) -> nn.Module:
    """Every parameter random, none at a value that would hide an error; norms and scales around one."""
    generator = torch.Generator().manual_seed(seed)
    for name, param in model.named_parameters():
        one = name.endswith(("norm.weight", "_scale")) or ("norm_" in name and param.ndim == 1)
        param.copy_(torch.randn(param.shape, generator=generator) * (std if param.ndim == 1 else std / 2) + one)
    return model.eval()


def hunyuan(**changes) -> HunyuanVideoTransformer3DModel:
    """A HunyuanVideo of the released kind: its refiner, single-stream blocks and guidance unless changed."""
    sizes = {
        "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 3,
        "num_single_layers": 2, "num_refiner_layers": 2, "mlp_ratio": 2.0, "text_embed_dim": 24,
        "pooled_projection_dim": 8, "rope_axes_dim": (4, 6, 6),
    }  # fmt: skip
    return randomize(HunyuanVideoTransformer3DModel(**{**sizes, **changes}))


@torch.no_grad()
def equal_modulation(model: HunyuanVideoTransformer3DModel) -> HunyuanVideoTransformer3DModel:
    """Give all blocks one modulation matrix; biases stay their own."""
    first = model.transformer_blocks[0]
    for block in model.transformer_blocks:
        block.norm1.linear.weight.copy_(first.norm1.linear.weight)
        block.norm1_context.linear.weight.copy_(first.norm1_context.linear.weight)
    return model


@dataclass(frozen=True)
class NaDiTConfig:
    """Sizes, and which of the two kinds. The last three are as released unless a test makes them as here:
    `norm="layer"` also before the output, `rope="here"`, and `mlp=False` where the MLP is not imported.
    """

    kind: str = "7b"
    layers: int = 3
    separate: int = 3
    heads: int = 2
    head_dim: int = 24
    in_channels: int = 9
    out_channels: int = 4
    text_dim: int = 24
    norm: str = "rms"
    rope: str = "own"
    mlp: bool = True

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


class Both(nn.Module):
    """A module for each stream, or one for both."""

    def __init__(self, make, shared: bool, text: bool = True):
        super().__init__()
        self.text = text
        if shared:
            self.all = make()
        else:
            self.vid = make()
            if text:
                self.txt = make()

    def one(self, stream: str) -> nn.Module:
        return self.all if hasattr(self, "all") else getattr(self, stream)


class RMS(nn.Module):
    """Per-head norm."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.weight


class Ada(nn.Module):
    """Vectors that are added to the shared modulation."""

    def __init__(self, dim: int, names: tuple[str, ...]):
        super().__init__()
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.zeros(dim)))


class GELU(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.proj_in, self.proj_out = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        return self.proj_out(F.gelu(self.proj_in(x), approximate="tanh"))


class SwiGLU(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        inner = 256 * math.ceil(int(8 * dim / 3) / 256)
        self.proj_in_gate, self.proj_in = (nn.Linear(dim, inner, bias=False) for _ in range(2))
        self.proj_out = nn.Linear(inner, dim, bias=False)

    def forward(self, x):
        return self.proj_out(F.silu(self.proj_in_gate(x)) * self.proj_in(x))


class Frequencies(nn.Module):
    """`rope.rope.freqs`, a buffer that lies in the released files."""

    def __init__(self, values: torch.Tensor):
        super().__init__()
        self.rope = nn.Module()
        self.rope.register_buffer("freqs", values)


ROWS = tuple(f"{layer}_{row}" for layer in ("attn", "mlp") for row in ("shift", "scale", "gate"))


class Block(nn.Module):
    def __init__(self, config: NaDiTConfig, index: int):
        super().__init__()
        self.config, self.index = config, index
        C, shared = config.width, index >= config.separate
        self.last = config.kind == "3b" and index == config.layers - 1
        self.attn = nn.Module()
        self.attn.proj_qkv = Both(lambda: nn.Linear(C, 3 * C, bias=False), shared)
        self.attn.proj_out = Both(lambda: nn.Linear(C, C), shared)
        self.attn.norm_q, self.attn.norm_k = (Both(lambda: RMS(config.head_dim), shared) for _ in range(2))
        self.attn.rope = Frequencies(frequencies(config))
        self.mlp = Both(lambda: (GELU if config.kind == "7b" else SwiGLU)(C), shared, text=not self.last)
        self.ada = Both(lambda: Ada(C, ROWS), shared, text=not self.last)

    def forward(self, streams: dict, emb: torch.Tensor, angles: dict) -> dict:
        """streams: `vid` and `txt`, [tokens, C]; emb [C, 2, 3]; angles: per stream [tokens, pairs]."""
        config = self.config
        q, k, v = [], [], []
        for name in ("vid", "txt"):
            x = self.modulate(norm(config, streams[name]), emb, name, 0)
            parts = self.attn.proj_qkv.one(name)(x).unflatten(-1, (3, config.heads, -1)).unbind(1)
            q.append(rotate(self.attn.norm_q.one(name)(parts[0]), angles[name]))
            k.append(rotate(self.attn.norm_k.one(name)(parts[1]), angles[name]))
            v.append(parts[2])
        q, k, v = (torch.cat(x).transpose(0, 1) for x in (q, k, v))
        attended = F.scaled_dot_product_attention(q[None], k[None], v[None])[0].transpose(0, 1).flatten(1)
        out = {}
        for name, part in zip(("vid", "txt"), attended.split([len(streams["vid"]), len(streams["txt"])]), strict=True):
            x = self.attn.proj_out.one(name)(part)
            if self.last and name == "txt":
                out[name] = streams[name]
                continue
            x = streams[name] + x * self.row(emb, name, 0, 2)
            if config.mlp:
                hidden = self.mlp.one(name)(self.modulate(norm(config, x), emb, name, 1))
                x = x + hidden * self.row(emb, name, 1, 2)
            out[name] = x
        return out

    def row(self, emb: torch.Tensor, name: str, layer: int, row: int) -> torch.Tensor:
        return emb[:, layer, row] + getattr(self.ada.one(name), ROWS[3 * layer + row])

    def modulate(self, x, emb, name, layer):
        if self.last and name == "txt":
            return x
        return x * self.row(emb, name, layer, 1) + self.row(emb, name, layer, 0)


class NaDiT(nn.Module):
    def __init__(self, config: NaDiTConfig):
        super().__init__()
        self.config, C = config, config.width
        self.vid_in, self.vid_out, self.emb_in = nn.Module(), nn.Module(), nn.Module()
        self.vid_in.proj = nn.Linear(4 * config.in_channels, C)
        self.txt_in = nn.Linear(config.text_dim, C)
        self.emb_in.proj_in, self.emb_in.proj_hid = nn.Linear(256, C), nn.Linear(C, C)
        self.emb_in.proj_out = nn.Linear(C, 6 * C)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.layers))
        if config.kind == "3b":
            self.vid_out_norm = RMS(C)
            self.vid_out_ada = Ada(C, ("out_shift", "out_scale"))
        self.vid_out.proj = nn.Linear(C, 4 * config.out_channels)

    def embed(self, timestep: float) -> torch.Tensor:
        """Shared modulation [C, attention or MLP, shift scale gate] of one timestep in 0..1000."""
        half = torch.exp(-math.log(10000) * torch.arange(128) / 128)
        angle = torch.tensor(float(timestep)) * half
        x = torch.cat([angle.sin(), angle.cos()]).to(self.txt_in.weight.dtype)
        x = F.silu(self.emb_in.proj_hid(F.silu(self.emb_in.proj_in(x))))
        return self.emb_in.proj_out(x).unflatten(0, (-1, 2, 3))

    def forward(self, latents: torch.Tensor, text: torch.Tensor, timestep: float) -> torch.Tensor:
        """latents [in_channels, T, H, W], text [L, text_dim] -> [out_channels, T, H, W]."""
        config = self.config
        c, t, h, w = latents.shape
        x = latents.reshape(c, t, h // 2, 2, w // 2, 2).permute(1, 2, 4, 3, 5, 0).flatten(3).flatten(0, 2)
        streams, emb = {"vid": self.vid_in.proj(x), "txt": self.txt_in(text)}, self.embed(timestep)
        angles = rope_angles(config, (t, h // 2, w // 2), len(text))
        for block in self.blocks:
            streams = block(streams, emb, angles)
        x = streams["vid"]
        if config.kind == "3b":
            # The released code finds the attention rows of the shared modulation here, in its cache.
            x = norm(config, x) * self.vid_out_norm.weight
            x = x * (emb[:, 0, 1] + self.vid_out_ada.out_scale) + emb[:, 0, 0] + self.vid_out_ada.out_shift
        elif config.norm == "layer":
            x = norm(config, x)  # only where a test has the output as here
        x = self.vid_out.proj(x).reshape(t, h // 2, w // 2, 2, 2, -1)
        return x.permute(5, 0, 1, 3, 2, 4).reshape(-1, t, h, w)


def norm(config: NaDiTConfig, x: torch.Tensor) -> torch.Tensor:
    if config.norm == "layer":
        return F.layer_norm(x, x.shape[-1:], eps=1e-5)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)


def frequencies(config: NaDiTConfig) -> torch.Tensor:
    """Of one axis: those of language models (3B), or evenly spaced for positions in [-1, 1] (7B)."""
    if config.kind == "3b":
        dim = config.head_dim // 3
        return 10000.0 ** -(torch.arange(0, dim, 2)[: dim // 2].float() / dim)
    return torch.linspace(1, 128, config.head_dim // 2 // 3 // 2) * math.pi


def rope_angles(config: NaDiTConfig, size: tuple[int, int, int], text: int) -> dict:
    """Angles [tokens, pairs] of both streams.

    `rope="here"` is for heads of 24 channels, three axes of 8 here: the 3B kind's own but for the text, which does not
    rotate and does not move the video; for the 7B kind each axis has the source's pairs in reverse, then two of the
    pairs that the source leaves alone.
    """
    freqs, tokens = frequencies(config), math.prod(size)
    ours = config.rope == "here"
    steps = [torch.arange(n).float() for n in size]
    if config.kind == "3b" and not ours:
        steps[0] += text
    if config.kind == "7b" and not ours:
        steps = [torch.linspace(-1, 1, n) for n in size]
    grid = torch.stack(torch.meshgrid(*steps, indexing="ij"), -1).reshape(tokens, 3)
    text_turns = (torch.arange(text).float()[:, None] * freqs).repeat(1, 3)
    if config.kind == "7b" and ours:
        low = torch.cat([grid[:, axis, None] * torch.tensor([0.1, 1.0]) for axis in range(3)], 1)
        high = torch.cat([grid[:, axis, None] * torch.tensor([0.01, 0.001]) for axis in range(3)], 1)
        return {"vid": torch.cat([low, high], 1), "txt": torch.zeros(text, 12)}
    still = ours or config.kind == "7b"
    return {"vid": (grid[:, :, None] * freqs).flatten(1), "txt": text_turns * (0 if still else 1)}


def rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotate the first channel pairs of x [tokens, heads, D]; the rest stays."""
    pairs = 2 * angles.shape[1]
    even, odd = x[..., :pairs].unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos().to(x.dtype)[:, None], angles.sin().to(x.dtype)[:, None]
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
    return torch.cat([turned, x[..., pairs:]], -1)
