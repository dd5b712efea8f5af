"""ViCLIP (Wang et al., InternVid, arXiv 2307.06942): the video and text encoders of its published checkpoints.

CLIP's ViT whose patches of all frames attend to each other: a linear patch embedding of each frame, CLIP's positions in
the frame, a learned position in time, one class token for the video. The text encoder is CLIP's with 32 tokens.
Names of weights are those of the checkpoints (`vision_encoder.transformer.resblocks.0.attn.in_proj_weight`...).

B: videos, T: frames, L: patches of a frame, C: width, D: width of a feature.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import nn

from phantom_mega.errors import UserError

HEAD_WIDTH = 64  # of all of CLIP's transformers


class QuickGelu(nn.Module):
    """OpenAI CLIP's approximation of GELU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """A pre-norm transformer block.

    Args:
        width: C.
        heads: of attention.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        layers = ("c_fc", nn.Linear(width, 4 * width)), ("gelu", QuickGelu()), ("c_proj", nn.Linear(4 * width, width))
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """[B, S, C] to the same.

        Args:
            x: tokens.
            mask: bool [S, S], true where a token must not look.
        """
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Blocks(nn.Module):
    """Blocks one after the other; the checkpoints call them `resblocks`."""

    def __init__(self, width: int, layers: int, heads: int):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads) for _ in range(layers))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


@dataclass(frozen=True)
class ViClipConfig:
    """Sizes of a ViCLIP; the defaults are ViCLIP-L's.

    Attributes:
        side, patch: pixels of a frame and of a patch.
        frames: of a video.
        width, layers: of the video encoder.
        text_width, text_layers: of the text encoder.
        tokens, vocabulary: of a text.
        features: D.
    """

    side: int = 224
    patch: int = 14
    frames: int = 8
    width: int = 1024
    layers: int = 24
    text_width: int = 768
    text_layers: int = 12
    tokens: int = 32
    vocabulary: int = 49408
    features: int = 768


class VideoEncoder(nn.Module):
    """Feature of a video.

    Args:
        config: of the model.
    """

    def __init__(self, config: ViClipConfig):
        super().__init__()
        width, patch = config.width, config.patch
        self.conv1 = nn.Conv3d(3, width, (1, patch, patch), (1, patch, patch), bias=False)
        scale = width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn((config.side // patch) ** 2 + 1, width))
        self.temporal_positional_embedding = nn.Parameter(torch.zeros(1, config.frames, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Blocks(width, config.layers, width // HEAD_WIDTH)
        self.proj = nn.Parameter(scale * torch.randn(width, config.features))

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """[B, D] of normalized pixels [B, 3, T, side, side]; T is `frames`, or 1 for a picture."""
        x = self.conv1(video).flatten(3).permute(0, 3, 2, 1)  # [B, L, T, C]
        x = x + self.positional_embedding[1:, None]
        in_time = self.temporal_positional_embedding
        x = x + (in_time.mean(1, keepdim=True) if x.shape[2] == 1 else in_time)
        first = (self.class_embedding + self.positional_embedding[0]).expand(len(x), 1, -1)
        x = self.transformer(self.ln_pre(torch.cat([first, x.flatten(1, 2)], 1)))
        return self.ln_post(x[:, 0]) @ self.proj


class TextEncoder(nn.Module):
    """Feature of a text.

    Args:
        config: of the model.
    """

    def __init__(self, config: ViClipConfig):
        super().__init__()
        width = config.text_width
        self.token_embedding = nn.Embedding(config.vocabulary, width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(config.tokens, width))
        self.transformer = Blocks(width, config.text_layers, width // HEAD_WIDTH)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(width**-0.5 * torch.randn(width, config.features))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[B, D] of token ids [B, tokens]; the end of a text has the highest one."""
        size = tokens.shape[1]
        later = torch.ones(size, size, dtype=torch.bool, device=tokens.device).triu(1)
        x = self.transformer(self.token_embedding(tokens) + self.positional_embedding, later)
        x = self.ln_final(x)[torch.arange(len(x), device=x.device), tokens.argmax(1)]
        return x @ self.text_projection


class ViClip(nn.Module):
    """ViCLIP.

    Args:
        config: sizes.
    """

    def __init__(self, config: ViClipConfig):
        super().__init__()
        self.config = config
        self.vision_encoder, self.text_encoder = VideoEncoder(config), TextEncoder(config)
        self.tokenizer = SimpleTokenizer(context_length=config.tokens)

    def encode_video(self, video: torch.Tensor) -> torch.Tensor:
        """See `VideoEncoder.forward`."""
        return self.vision_encoder(video)

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """[B, D] of texts, cut to `tokens`."""
        return self.text_encoder(self.tokenizer(list(texts)).to(self.text_encoder.text_projection.device))


def config_of(weights: Mapping[str, torch.Tensor]) -> ViClipConfig:
    """Sizes of the model that weights belong to.

    Raises:
        KeyError: they are of another model; the message is the name that is not there.
    """
    video, text = "vision_encoder.", "text_encoder."
    width, _, _, patch, _ = weights[f"{video}conv1.weight"].shape
    grid = round((len(weights[f"{video}positional_embedding"]) - 1) ** 0.5)
    vocabulary, text_width = weights[f"{text}token_embedding.weight"].shape
    return ViClipConfig(
        side=grid * patch, patch=patch, frames=weights[f"{video}temporal_positional_embedding"].shape[1],
        width=width, layers=_layers(weights, video), text_width=text_width, text_layers=_layers(weights, text),
        tokens=len(weights[f"{text}positional_embedding"]), vocabulary=vocabulary,
        features=weights[f"{video}proj"].shape[1],
    )  # fmt: skip


def _layers(weights: Mapping[str, torch.Tensor], encoder: str) -> int:
    return sum(name.startswith(f"{encoder}transformer.") and name.endswith("ln_1.weight") for name in weights)


def viclip_of(weights: Mapping[str, torch.Tensor], where: str) -> ViClip:
    """The model that weights belong to, in eval mode without gradients.

    Args:
        weights: by name; the temperature of training (`temp`) is left out.
        where: they are from, for messages.

    Raises:
        UserError: they are not those of a ViCLIP, or not all of them.
    """
    weights = {name: value for name, value in weights.items() if name != "temp"}
    try:
        with torch.device("meta"):
            model = ViClip(config_of(weights))
        model.load_state_dict(weights, assign=True)
    except (KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{where} holds no weights of a ViCLIP: {reason}") from None
    return model.float().eval().requires_grad_(False)
