"""MUSIQ (arXiv 2108.05997): a transformer that scores a picture's technical quality from patches of three scales.

Written from the paper and its code (google-research/musiq), for no package of it installs beside this project's: pyiqa,
whose checkpoints are read here, brings a second OpenCV and some thirty packages. The names of modules are those of the
checkpoints; every weight of theirs must be found. Pictures of a batch have one size, so nothing is padded or masked.

B: pictures, N: patches of all scales, C: width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH, GRID, HEADS = 32, 10, 6
LONGER_SIDES = (224, 384)  # of the two smaller scales; the third is the picture itself
STEM = 64


def same_padding(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zeros around [B, c, h, w] so that ceil(side / stride) windows fit: TensorFlow's SAME, the odd one at the end."""
    sides = []
    for length in (x.shape[-1], x.shape[-2]):
        missing = max(0, (-(-length // stride) - 1) * stride + kernel - length)
        sides += [missing // 2, missing - missing // 2]
    return F.pad(x, sides)


class StandardizedConv(nn.Conv2d):
    """A convolution whose kernels have mean 0 and deviation 1 (arXiv 1903.10520), padded as TensorFlow does."""

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        kernel = kernel / (kernel.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(same_padding(x, self.kernel_size[0], self.stride[0]), kernel, None, self.stride)


class Bottleneck(nn.Module):
    """A residual block of ResNet v1 with group norms."""

    def __init__(self, channels: int):
        super().__init__()
        wide = 4 * channels
        shapes = {"1": (channels, channels, 1), "2": (channels, channels, 3), "3": (channels, wide, 1)}
        for name, (before, after, kernel) in (shapes | {"_proj": (channels, wide, 1)}).items():
            setattr(self, f"conv{name}", StandardizedConv(before, after, kernel, bias=False))
            setattr(self, f"gn{name}", nn.GroupNorm(32, after, eps=1e-4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.gn1(self.conv1(x)).relu()
        y = self.gn2(self.conv2(y)).relu()
        return (self.gn3(self.conv3(y)) + self.gn_proj(self.conv_proj(x))).relu()


class Attention(nn.Module):
    """Self-attention over [B, N, C]."""

    def __init__(self, width: int):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(2, (HEADS, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A transformer block with the norm in front."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 3 * width), "fc2": nn.Linear(3 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class _Table(nn.Module):
    """A learned table under the name that the checkpoints give it."""

    def __init__(self, name: str, *shape: int):
        super().__init__()
        self.register_parameter(name, nn.Parameter(torch.randn(*shape) * 0.02))


class Encoder(nn.Module):
    """Transformer over patches and a class token, with embeddings of the place in the picture and of the scale."""

    def __init__(self, width: int, layers: int):
        super().__init__()
        self.posembed_input = _Table("position_emb", 1, GRID * GRID, width)
        self.scaleembed_input = _Table("scale_emb", len(LONGER_SIDES) + 1, width)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.transformer = nn.ModuleDict({f"encoderblock_{i}": Block(width) for i in range(layers)})
        self.encoder_norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor, places: Tensor, scales: Tensor) -> Tensor:
        """[B, N, C] with places and scales int64 [N] to the class token [B, C]."""
        x = x + self.posembed_input.position_emb[0, places] + self.scaleembed_input.scale_emb[scales]
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1)
        for block in self.transformer.values():
            x = block(x)
        return self.encoder_norm(x)[:, 0]


def grid_places(rows: int, columns: int) -> Tensor:
    """Cells, int64 [rows * columns], of a 10x10 grid that patches at (row, column) hash to (eq. 1 of the paper)."""
    cells = torch.arange(GRID, dtype=torch.float32).view(1, 1, GRID)
    down, across = (F.interpolate(cells, count, mode="nearest").long().flatten() for count in (rows, columns))
    return (down[:, None] * GRID + across[None]).flatten()


def patches(x: Tensor) -> tuple[Tensor, Tensor]:
    """(patches [B, n, 3, 32, 32], places [n]) of pictures [B, 3, h, w], zeros around what is no multiple of 32."""
    rows, columns = -(-x.shape[2] // PATCH), -(-x.shape[3] // PATCH)
    cut = F.unfold(same_padding(x, PATCH, PATCH), PATCH, stride=PATCH)
    return cut.transpose(1, 2).unflatten(2, (3, PATCH, PATCH)), grid_places(rows, columns)


def scaled(x: Tensor, longer: int) -> Tensor:
    """Pictures [B, 3, h, w] brought to a longer side (bicubic, not antialiased)."""
    ratio = longer / max(x.shape[2:])
    size = [max(1, round(side * ratio)) for side in x.shape[2:]]
    return F.interpolate(x, size, mode="bicubic", align_corners=False)


class Musiq(nn.Module):
    """MUSIQ with one score, as trained on SPAQ (0 to 100) and KonIQ.

    Args:
        width: of the transformer, a multiple of 6.
        layers: of the transformer.
    """

    def __init__(self, width: int = 384, layers: int = 14):
        super().__init__()
        self.conv_root = StandardizedConv(3, STEM, 7, 2, bias=False)
        self.gn_root = nn.GroupNorm(32, STEM, eps=1e-6)
        self.block1 = Bottleneck(STEM)
        self.embedding = nn.Linear(4 * STEM * (PATCH // 4) ** 2, width)
        self.transformer_encoder = Encoder(width, layers)
        self.head = nn.Linear(width, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        """Scores [B] of pictures [B, 3, h, w] in [0, 1], sides at least 1 pixel."""
        x = pictures * 2 - 1
        found = [patches(one) for one in (*(scaled(x, side) for side in LONGER_SIDES), x)]
        scales = torch.cat([torch.full_like(places, i) for i, (_, places) in enumerate(found)])
        places = torch.cat([places for _, places in found])
        cut = torch.cat([one for one, _ in found], 1)
        y = self.gn_root(self.conv_root(cut.flatten(0, 1))).relu()
        y = self.block1(F.max_pool2d(same_padding(y, 3, 2), 3, 2))
        tokens = self.embedding(y.permute(0, 2, 3, 1).flatten(1)).unflatten(0, cut.shape[:2])
        return self.head(self.transformer_encoder(tokens, places.to(x.device), scales.to(x.device)))[:, 0]
