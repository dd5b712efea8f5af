"""DINO-I-Seg: DINO-I of the subjects alone, cut out by Grounded-SAM (paper 4.2, table 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from phantom_mega.evaluation.cutouts import SegmentedSettings, build_segmented
from phantom_mega.evaluation.encoders import load_dino
from phantom_mega.evaluation.metric import Metric


@dataclass
class DinoISegSettings(SegmentedSettings):
    """What measures DINO-I-Seg."""

    model: str = "facebook/dinov2-base"
    """Vision transformer of transformers with a class token: a name of the hub or a folder. `pretrained` is unused."""


def build(settings: DinoISegSettings, device: torch.device | str) -> Metric:
    """The metric with its models.

    Raises:
        UserError: a setting is out of range, or a model cannot be loaded.
    """
    return build_segmented("dino_i_seg", "DINO-I-Seg", settings, device, load_dino)


METRICS = {"dino_i_seg": (DinoISegSettings, build)}
