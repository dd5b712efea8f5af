"""Frames as VBench's encoders see them: its resizing, cropping and normalization, in chunks that fit in memory.

VBench (arXiv 2311.17982; github.com/Vchitect/VBench, vbench/utils.py) resizes float frames without antialiasing, which
its numbers depend on: do not "mend" it here.

F: frames.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torchvision.transforms.v2 import functional as transforms
from torchvision.transforms.v2.functional import InterpolationMode

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CHUNK = 16  # frames at once


def to_float(frames: np.ndarray) -> torch.Tensor:
    """uint8 [F, H, W, 3] to float32 [F, 3, H, W] in [0, 255]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()


def clip_pixels(frames: np.ndarray, side: int = 224) -> torch.Tensor:
    """Input of CLIP: shorter side to `side` (bicubic, not antialiased), centre crop, normalized.

    Args:
        frames: uint8 [F, H, W, 3].
        side: of CLIP's square.

    Returns:
        float32 [F, 3, side, side].
    """
    pixels = transforms.resize(to_float(frames), [side], InterpolationMode.BICUBIC, antialias=False)
    pixels = transforms.center_crop(pixels, [side, side]) / 255
    return transforms.normalize(pixels, list(CLIP_MEAN), list(CLIP_STD))


def dino_pixels(frames: np.ndarray, side: int = 224) -> torch.Tensor:
    """Input of DINO: shorter side to `side` (bilinear, not antialiased), not cropped, normalized.

    Args:
        frames: uint8 [F, H, W, 3].
        side: pixels of the shorter side.

    Returns:
        float32 [F, 3, h, w], the smaller of h and w being `side`.
    """
    pixels = transforms.resize(to_float(frames), [side], InterpolationMode.BILINEAR, antialias=False) / 255
    return transforms.normalize(pixels, list(IMAGENET_MEAN), list(IMAGENET_STD))


@torch.inference_mode()
def encode(
    frames: np.ndarray,
    pixels: Callable[[np.ndarray], torch.Tensor],
    model: Callable[[torch.Tensor], torch.Tensor],
    device: torch.device | str,
) -> np.ndarray:
    """What a model makes of every frame, `CHUNK` frames at once.

    Args:
        frames: uint8 [F, H, W, 3].
        pixels: from frames to the model's input.
        model: from that to [n, ...].
        device: where the model is.

    Returns:
        float32 [F, ...].
    """
    chunks = (frames[at : at + CHUNK] for at in range(0, len(frames), CHUNK))
    return torch.cat([model(pixels(chunk).to(device)).float().cpu() for chunk in chunks]).numpy()
