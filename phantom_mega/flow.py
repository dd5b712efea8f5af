"""Rectified flow (paper 3.2; Liu et al. 2022; timestep density and shift after Esser et al. 2024).

x_t = (1-t) x_0 + t e, and the network learns the velocity v = e - x_0. t = 0 is data, t = 1 is noise.
"""

from __future__ import annotations

import torch


def resolution_shift(
    pixels: int,
    shift_min: float = 1.0,
    shift_max: float = 5.0,
    shift_min_pixels: int = 256 * 256 * 37,
    shift_max_pixels: int = 1280 * 720 * 145,
) -> float:
    """s, linear in the video's pixels (height x width x frames) through the two given points."""
    slope = (shift_max - shift_min) / (shift_max_pixels - shift_min_pixels)
    return max(shift_min + slope * (pixels - shift_min_pixels), 1e-3)


def shift_timestep(t: torch.Tensor, shift: float | torch.Tensor) -> torch.Tensor:
    """t' = s t / (1 + (s-1) t): moves timesteps towards noise for s > 1, as larger videos need."""
    return shift * t / (1 + (shift - 1) * t)


def sample_timesteps(
    count: int, generator: torch.Generator, logit_mean: float = 0.0, logit_std: float = 1.0
) -> torch.Tensor:
    """t in (0, 1), float32 [count], logit-normal."""
    return torch.sigmoid(torch.randn(count, generator=generator) * logit_std + logit_mean)


def interpolate(x0: torch.Tensor, noise: torch.Tensor, t: float | torch.Tensor) -> torch.Tensor:
    """x_t on the straight line from data to noise."""
    return (1 - t) * x0 + t * noise


def velocity(x0: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The regression target e - x_0."""
    return noise - x0


def flow_loss(prediction: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Squared error of every token, averaged over channels, times its weight.

    Args:
        prediction: [S, C].
        target: [S, C].
        weight: [S], 1 on video tokens, 0 on references, padding and bad samples.

    Returns:
        float32 [S] (float64 for float64 input); its sum over the batch divided by the sum of `weight` is the loss.
    """
    wide = torch.promote_types(prediction.dtype, torch.float32)
    error = (prediction.to(wide) - target.to(wide)).square().mean(-1)
    # Selected, not multiplied: what stands in padding must not reach the loss even where it is not finite.
    return torch.where(weight > 0, error * weight, torch.zeros_like(error))
