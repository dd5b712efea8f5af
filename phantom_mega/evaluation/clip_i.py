"""CLIP-I: cosine of CLIP's features of frames and references, by whole pictures (paper 4.2, tables 2 and 3).

The paper cites OpenCLIP (Cherti et al., CVPR 2023) and names no size; the default is the ViT-B/32 of OpenAI, by which
CLIP-I was introduced (DreamBooth, arXiv 2208.12242). Numbers of two models do not compare.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from phantom_mega.evaluation.encoders import EncoderSettings, load_clip
from phantom_mega.evaluation.image_similarity import ImageSimilarity
from phantom_mega.evaluation.metric import Metric


@dataclass
class ClipISettings(EncoderSettings):
    """What measures CLIP-I."""

    model: str = "ViT-B-32-quickgelu"
    """CLIP of open_clip: a name, `hf-hub:NAME` or a folder."""
    pretrained: str = "openai"
    """For a name: a published tag or a checkpoint file."""


def build(settings: ClipISettings, device: torch.device | str) -> Metric:
    """The metric with its model.

    Raises:
        UserError: a setting is out of range, or the model cannot be loaded.
    """
    settings.check("clip_i")
    return ImageSimilarity("clip_i", "CLIP-I", load_clip(settings, "clip_i", device), settings.frames)


METRICS = {"clip_i": (ClipISettings, build)}
