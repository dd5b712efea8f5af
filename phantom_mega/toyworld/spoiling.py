"""What the trainings of the toy world's models share: spoiled videos, the learning rate, the precision."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

WARM_UP = 60  # steps


def learning_rate(step: int, steps: int) -> float:
    """Share of the peak: linear warm-up, then half a cosine down to nothing."""
    warm_up = min(WARM_UP, steps // 5)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 + 0.5 * math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether a device computes in bfloat16; others emulate it, slower than float32."""
    return torch.cuda.is_bf16_supported(False) if device.type == "cuda" else torch.cpu._is_amx_tile_supported()


def spoil(videos: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Blur, noise and shifts of colour as generated videos have them; half of the videos stay nearly as they are.

    Args:
        videos: float [B, K, 3, H, W] in [0, 255].
        rng: is advanced.

    Returns:
        float [B, K, 3, H, W] in [-1, 1].
    """
    out = videos / 127.5 - 1
    noise = torch.Generator().manual_seed(int(rng.integers(2**62)))
    for row in range(len(out)):
        video = out[row]
        if rng.random() < 0.5:
            video = blur(video, rng.uniform(0.3, 1.1))
            video = video * rng.uniform(0.9, 1.08) + rng.uniform(-0.06, 0.06)
            video = video + torch.from_numpy(rng.uniform(-0.04, 0.04, (3, 1, 1))).float()
        amount = rng.uniform(0, 0.12) if rng.random() < 0.5 else rng.uniform(0, 0.02)
        out[row] = (video + amount * torch.randn(video.shape, generator=noise)).clamp(-1, 1)
    return out


def blur(frames: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of float [K, 3, H, W], `sigma` in pixels."""
    radius = math.ceil(3 * sigma)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma).square())
    weights = (weights / weights.sum()).to(frames)
    padded = F.pad(frames.flatten(0, 1)[:, None], (radius,) * 4, mode="replicate")
    across = F.conv2d(padded, weights.view(1, 1, 1, -1))
    return F.conv2d(across, weights.view(1, 1, -1, 1))[:, 0].unflatten(0, frames.shape[:2])
