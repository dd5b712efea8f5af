"""DINO-I: cosine of DINO's class tokens of frames and references, by whole pictures (paper 4.2, tables 2 and 3).

The paper cites DINOv2 (Oquab et al., arXiv 2304.07193) and names no size. DINO-I was introduced with the first DINO's
ViT-S/16 (DreamBooth, arXiv 2208.12242: `facebook/dino-vits16`). Numbers of two models do not compare.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from phantom_mega.evaluation.encoders import EncoderSettings, load_dino
from phantom_mega.evaluation.image_similarity import ImageSimilarity
from phantom_mega.evaluation.metric import Metric


@dataclass
class DinoISettings(EncoderSettings):
    """What measures DINO-I."""

    model: str = "facebook/dinov2-base"
    """Vision transformer of transformers with a class token: a name of the hub or a folder. `pretrained` is unused."""


def build(settings: DinoISettings, device: torch.device | str) -> Metric:
    """The metric with its model.

    Raises:
        UserError: a setting is out of range, or the model cannot be loaded.
    """
    settings.check("dino_i")
    return ImageSimilarity("dino_i", "DINO-I", load_dino(settings, "dino_i", device), settings.frames)


METRICS = {"dino_i": (DinoISettings, build)}
