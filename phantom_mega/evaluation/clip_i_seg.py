"""CLIP-I-Seg: CLIP-I of the subjects alone, cut out by Grounded-SAM (paper 4.2, table 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from phantom_mega.evaluation.cutouts import SegmentedSettings, build_segmented
from phantom_mega.evaluation.encoders import load_clip
from phantom_mega.evaluation.metric import Metric


@dataclass
class ClipISegSettings(SegmentedSettings):
    """What measures CLIP-I-Seg."""

    model: str = "ViT-B-32-quickgelu"
    """CLIP of open_clip: a name, `hf-hub:NAME` or a folder."""
    pretrained: str = "openai"
    """For a name: a published tag or a checkpoint file."""


def build(settings: ClipISegSettings, device: torch.device | str) -> Metric:
    """The metric with its models.

    Raises:
        UserError: a setting is out of range, or a model cannot be loaded.
    """
    return build_segmented("clip_i_seg", "CLIP-I-Seg", settings, device, load_clip)


METRICS = {"clip_i_seg": (ClipISegSettings, build)}
