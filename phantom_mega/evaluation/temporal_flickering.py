"""Temporal flickering of VBench: how much pixels change from one frame to the next. Needs no model.

VBench (arXiv 2311.17982, vbench/temporal_flickering.py) scores videos of still scenes only: its prompts ask for them,
and its static filter drops those that RAFT finds moving. A video that moves scores lower without any flicker, so read
it beside `dynamic_degree`, or of still scenes alone; nothing is filtered here.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from phantom_mega.evaluation.consistency import too_short
from phantom_mega.evaluation.metric import Item, Measured, Metric


def steadiness(frames: np.ndarray) -> float:
    """(255 - mean absolute difference of successive frames) / 255.

    Args:
        frames: uint8 [F, H, W, 3], F at least 2.

    Returns:
        in [0, 1]; 1 where no pixel changes.
    """
    differences = [np.abs(b.astype(np.int16) - a).mean() for a, b in pairwise(frames)]
    return (255 - float(np.mean(differences))) / 255


@dataclass
class TemporalFlickeringSettings:
    """Nothing is to be set."""


class TemporalFlickering:
    """Steadiness of pixels; higher is better."""

    name, title, higher_is_better = "temporal_flickering", "Temporal flickering", True

    def measure(self, item: Item) -> Measured:
        return too_short(len(item.frames), 2) or Measured(steadiness(item.frames))


def build(settings: TemporalFlickeringSettings, device: torch.device | str) -> Metric:
    """The metric."""
    return TemporalFlickering()


METRICS = {"temporal_flickering": (TemporalFlickeringSettings, build)}
