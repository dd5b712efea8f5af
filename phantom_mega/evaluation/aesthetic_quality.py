"""Aesthetic quality of VBench: LAION's linear head on CLIP ViT-L/14, which foretells people's scores from 1 to 10.

VBench's own (arXiv 2311.17982, vbench/aesthetic_quality.py): all frames, CLIP's preprocessing, features of length 1,
the head `sa_0_4_vit_l_14_linear.pth`, the mean over frames divided by 10. What differs: open_clip holds OpenAI's
weights, in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from phantom_mega.errors import UserError
from phantom_mega.evaluation.background_consistency import load_clip
from phantom_mega.evaluation.metric import Item, Measured, Metric
from phantom_mega.evaluation.pixels import clip_pixels, encode

_HEAD = "aesthetic_quality.head"
_SOURCE = "github.com/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_l_14_linear.pth"


def aesthetic_score(features: np.ndarray, weight: np.ndarray, bias: float) -> float:
    """Mean over frames of the head's score of the feature's direction, divided by 10.

    Args:
        features: [F, width] of frames.
        weight: [width] of the head.
        bias: of the head.

    Returns:
        people's scores of 1 to 10 lie at 0.1 to 1; not bounded.
    """
    directions = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    return float((directions @ weight + bias).mean() / 10)


@dataclass
class AestheticQualitySettings:
    """What measures aesthetic quality."""

    model: str = "ViT-L-14-quickgelu"
    """CLIP of open_clip: a name, `hf-hub:NAME` or a folder. VBench uses OpenAI's ViT-L/14."""
    pretrained: str = "openai"
    """For a name: a published tag or a checkpoint file."""
    head: str = ""
    """File of LAION's linear head for that model: `sa_0_4_vit_l_14_linear.pth` of
    github.com/LAION-AI/aesthetic-predictor. The MLP of `improved-aesthetic-predictor` is another, with other scores."""


class AestheticQuality:
    """LAION's score of frames.

    Args:
        model: from normalized pixels [n, 3, 224, 224] to features [n, width].
        weight: [width] of the head.
        bias: of the head.
        device: where the model is.
    """

    name, title, higher_is_better = "aesthetic_quality", "Aesthetic quality", True

    def __init__(
        self,
        model: Callable[[torch.Tensor], torch.Tensor],
        weight: np.ndarray,
        bias: float,
        device: torch.device | str,
    ):
        self.model, self.weight, self.bias, self.device = model, weight, bias, device

    def measure(self, item: Item) -> Measured:
        return Measured(
            aesthetic_score(encode(item.frames, clip_pixels, self.model, self.device), self.weight, self.bias)
        )


def load_head(path: str, width: int) -> tuple[np.ndarray, float]:
    """(weight [width], bias) of a linear head.

    Args:
        path: of its file.
        width: of the features it must take.

    Raises:
        UserError: none is set, it cannot be read, or is another model.
    """
    if not path:
        raise UserError(f"{_HEAD} is not set; give the file of {_SOURCE}")
    if not Path(path).is_file():
        raise UserError(f"{_HEAD}={path!r}: there is no such file; give the file of {_SOURCE}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if set(state) != {"weight", "bias"}:
            raise ValueError(f"it holds {', '.join(sorted(state)[:4])} instead of weight and bias")
        if tuple(state["weight"].shape) != (1, width):
            raise ValueError(f"its weight is {list(state['weight'].shape)}, the model's features ask for {[1, width]}")
    except Exception as error:  # of what is no such file, torch raises nearly anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{_HEAD}={path!r} cannot be used: {reason}; give the file of {_SOURCE}") from None
    return state["weight"][0].float().numpy(), float(state["bias"])


def build(settings: AestheticQualitySettings, device: torch.device | str) -> Metric:
    """The metric with its models.

    Raises:
        UserError: one of them cannot be loaded.
    """
    if not settings.head:  # said before a large model is downloaded
        load_head(settings.head, 0)
    model = load_clip("aesthetic_quality", settings.model, settings.pretrained, device)
    with torch.inference_mode():
        width = model(torch.zeros(1, 3, 224, 224, device=device)).shape[1]
    return AestheticQuality(model, *load_head(settings.head, width), device)


METRICS = {"aesthetic_quality": (AestheticQualitySettings, build)}
