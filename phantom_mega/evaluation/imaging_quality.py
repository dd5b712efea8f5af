"""Imaging quality of VBench: noise, blur and exposure of frames, as MUSIQ trained on SPAQ scores them.

VBench's own (arXiv 2311.17982, vbench/imaging_quality.py): all frames, the longer side brought to 512 pixels (bilinear,
not antialiased; smaller frames stay), MUSIQ with the checkpoint `musiq_spaq_ckpt-358bb6af.pth`, the mean over frames
divided by 100. What differs: MUSIQ is this project's (`musiq.py`), its weights are pyiqa's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torchvision.transforms.v2 import functional as transforms

from phantom_mega.errors import UserError
from phantom_mega.evaluation.metric import Item, Measured, Metric
from phantom_mega.evaluation.musiq import Musiq
from phantom_mega.evaluation.pixels import encode, to_float

LONGER_SIDE = 512
_WEIGHTS = "imaging_quality.weights"
_SOURCE = "github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights/musiq_spaq_ckpt-358bb6af.pth"


def musiq_pixels(frames: np.ndarray) -> torch.Tensor:
    """uint8 [F, H, W, 3] to float32 [F, 3, h, w] in [0, 1], the longer side at most 512 pixels."""
    pixels = to_float(frames)
    height, width = pixels.shape[2:]
    if max(height, width) > LONGER_SIDE:
        scale = LONGER_SIDE / max(height, width)
        pixels = transforms.resize(pixels, [int(scale * height), int(scale * width)], antialias=False)
    return pixels / 255


@dataclass
class ImagingQualitySettings:
    """What measures imaging quality."""

    weights: str = ""
    """File of MUSIQ trained on SPAQ, `musiq_spaq_ckpt-358bb6af.pth` of github.com/chaofengc/IQA-PyTorch (release
    v0.1-weights)."""


class ImagingQuality:
    """MUSIQ's score of frames.

    Args:
        model: from pictures [n, 3, h, w] in [0, 1] to scores [n] of 0 to 100.
        device: where it is.
    """

    name, title, higher_is_better = "imaging_quality", "Imaging quality", True

    def __init__(self, model: Callable[[torch.Tensor], torch.Tensor], device: torch.device | str):
        self.model, self.device = model, device

    def measure(self, item: Item) -> Measured:
        return Measured(float(encode(item.frames, musiq_pixels, self.model, self.device).mean()) / 100)


def load_musiq(path: str, device: torch.device | str) -> Musiq:
    """MUSIQ with a checkpoint of pyiqa.

    Raises:
        UserError: none is set, it cannot be read, or is another model's.
    """
    if not path:
        raise UserError(f"{_WEIGHTS} is not set; give the file of {_SOURCE}")
    if not Path(path).is_file():
        raise UserError(f"{_WEIGHTS}={path!r}: there is no such file; give the file of {_SOURCE}")
    model = Musiq()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()})
    except Exception as error:  # of what is no such file, torch raises nearly anything
        reason = " ".join(line.strip() for line in str(error).splitlines()[:2]) or type(error).__name__
        raise UserError(f"{_WEIGHTS}={path!r} cannot be used: {reason[:300]}; give the file of {_SOURCE}") from None
    return model.to(device).eval().requires_grad_(False)


def build(settings: ImagingQualitySettings, device: torch.device | str) -> Metric:
    """The metric with its model.

    Raises:
        UserError: the model cannot be loaded.
    """
    return ImagingQuality(load_musiq(settings.weights, device), device)


METRICS = {"imaging_quality": (ImagingQualitySettings, build)}
