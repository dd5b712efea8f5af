"""Background consistency of VBench: whether the scene stays the same, by CLIP's image feature of whole frames.

VBench's own: the preprocessing, all frames, the formula, CLIP ViT-B/32 (arXiv 2103.00020). What differs: open_clip
holds OpenAI's weights, in float32; the `clip` package computes in float16 on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from phantom_mega.conditioning.vision import load_open_clip
from phantom_mega.errors import UserError
from phantom_mega.evaluation.consistency import consistency, too_short
from phantom_mega.evaluation.metric import Item, Measured, Metric
from phantom_mega.evaluation.pixels import clip_pixels, encode


@dataclass
class BackgroundConsistencySettings:
    """What measures background consistency."""

    model: str = "ViT-B-32-quickgelu"
    """CLIP of open_clip: a name, `hf-hub:NAME` or a folder. VBench uses OpenAI's ViT-B/32, whose activation is
    QuickGELU."""
    pretrained: str = "openai"
    """For a name: a published tag or a checkpoint file."""


class BackgroundConsistency:
    """Mean of the cosines to the first and to the previous frame.

    Args:
        model: from normalized pixels [n, 3, 224, 224] to features [n, width].
        device: where it is.
    """

    name, title, higher_is_better = "background_consistency", "Background consistency", True

    def __init__(self, model: Callable[[torch.Tensor], torch.Tensor], device: torch.device | str):
        self.model, self.device = model, device

    def measure(self, item: Item) -> Measured:
        return too_short(len(item.frames), 2) or Measured(
            consistency(encode(item.frames, clip_pixels, self.model, self.device))
        )


def load_clip(
    metric: str, model: str, pretrained: str, device: torch.device | str
) -> Callable[[torch.Tensor], torch.Tensor]:
    """CLIP's image features by open_clip.

    Args:
        metric: whose settings `model` and `pretrained` are, for messages.
        model, pretrained: the settings.
        device: where it computes.

    Raises:
        UserError: it cannot be loaded, or does not take squares of 224 pixels, as VBench's models do.
    """
    options = f"{metric}.model", f"{metric}.pretrained"
    what = f"{options[0]} (with {options[1]}={pretrained!r})"
    _, loaded = load_open_clip(model, pretrained, what, *options)
    size = loaded.visual.image_size
    if tuple(size if isinstance(size, (tuple, list)) else (size, size)) != (224, 224):
        raise UserError(f"{options[0]}={model!r} takes frames of {size} pixels; use a model of 224, as VBench does")
    return loaded.to(device).eval().requires_grad_(False).encode_image


def build(settings: BackgroundConsistencySettings, device: torch.device | str) -> Metric:
    """The metric with its model.

    Raises:
        UserError: the model cannot be loaded.
    """
    model = load_clip("background_consistency", settings.model, settings.pretrained, device)
    return BackgroundConsistency(model, device)


METRICS = {"background_consistency": (BackgroundConsistencySettings, build)}
