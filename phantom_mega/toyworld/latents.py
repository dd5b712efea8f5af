"""The toy world's VAE: the linear video autoencoder, fitted on renders instead of photographed clips.

Round trips of held-out 17-frame renders of 32x32 pixels (first frames alone), `measure_vae`, fitted on 600 videos:
32 channels 20.3 dB (21.8), 48 channels 21.3 dB (23.5), 64 channels 22.1 dB (25.2); on 200 videos 96 channels 23.6 dB
(29.0), 128 channels 24.7 dB (33.0). Sharp edges at so few pixels are hard for a linear basis.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from phantom_mega.conditioning.linear_vae import LinearVideoVAE
from phantom_mega.toyworld.render import render
from phantom_mega.toyworld.samples import make_sample

FIT_VIDEOS = 600
ACTORS = (1, 1, 2, 1, 3, 1, 2, 4)  # of one video after the other


def to_input(video: np.ndarray) -> torch.Tensor:
    """uint8 [F, H, W, 3] -> float32 [3, F, H, W] in [-1, 1], as VAEs take it."""
    return torch.from_numpy(np.ascontiguousarray(video)).movedim(-1, 0).float() / 127.5 - 1


def to_pixels(video: torch.Tensor) -> np.ndarray:
    """The inverse of `to_input`, clipped."""
    return ((video.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(0, -1).cpu().numpy()


def round_trip(vae: LinearVideoVAE, video: np.ndarray) -> np.ndarray:
    """A video uint8 [F, H, W, 3] after encoding and decoding; F = 4k + 1, H and W multiples of 8."""
    with torch.no_grad():
        return to_pixels(vae(to_input(video)[None].to(vae.device)).sample[0])


def sample_videos(
    count: int, seed: int, split: str, height: int = 32, width: int = 32, frames: int = 17
) -> Iterator[np.ndarray]:
    """Renders of samples with 1 to 4 actors, uint8 [F, H, W, 3]."""
    for number in range(count):
        sample = make_sample(
            seed, number, split=split, actors=ACTORS[number % len(ACTORS)], height=height, width=width, frames=frames
        )
        yield render(sample.scene, frames, height, width)


def fit_vae(
    latent_channels: int = 48, videos: int = FIT_VIDEOS, seed: int = 0, height: int = 32, width: int = 32
) -> LinearVideoVAE:
    """PCA of renders of training subjects; `save_pretrained(folder)` writes what `conditioning.vae=folder` loads."""
    renders = (to_input(video) for video in sample_videos(videos, seed, "train", height, width))
    return LinearVideoVAE.fit(renders, latent_channels)


def measure_vae(vae: LinearVideoVAE, videos: int = 64, seed: int = 1, height: int = 32, width: int = 32) -> dict:
    """Round trips of renders of held-out subjects.

    Returns:
        `psnr` and `first_frame_psnr` in dB over all pixels (peak 255), and `latent_variance` of scaled latents.
    """
    errors, first, latents = [], [], []
    for video in sample_videos(videos, seed, "validation", height, width):
        back = round_trip(vae, video)
        error = np.square((back.astype(np.float64) - video) / 255)
        errors.append(error.mean())
        first.append(error[0].mean())
        z = vae.encode(to_input(video)[None]).latent_dist.mode()
        latents.append(z * vae.config.scaling_factor)
    return {
        "latent_channels": vae.config.latent_channels,
        "videos": videos,
        "psnr": -10 * math.log10(max(np.mean(errors), 1e-12)),
        "first_frame_psnr": -10 * math.log10(max(np.mean(first), 1e-12)),
        "latent_variance": float(torch.cat(latents).var()),
    }
