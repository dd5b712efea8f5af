"""Random draws of training as functions of (seed, epoch, sample), never of a rank or of what was drawn before.

So every model-parallel peer sees the same noise, any layout trains on the same numbers, and a resumed run needs no
random state.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from phantom_mega.config import FlowConfig
from phantom_mega.flow import resolution_shift, sample_timesteps, shift_timestep


@dataclass(frozen=True)
class SampleDraws:
    """What chance decides about one sample in one epoch.

    Attributes:
        noise: float32 of the latents' shape [C, T, 2H, 2W].
        timestep: t in (0, 1), shifted for the sample's resolution.
        drop_text: train with the empty prompt's features.
        drop_latents: reference latents are zeros.
        drop_clip: CLIP features are zeros.
    """

    noise: torch.Tensor
    timestep: float
    drop_text: bool
    drop_latents: bool
    drop_clip: bool


def generator_for(*key: object) -> torch.Generator:
    """A CPU generator seeded by a hash of the key's parts, e.g. (seed, epoch, sample key, purpose)."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def draw_sample(
    seed: int, epoch: int, key: str, latent_shape: tuple[int, ...], pixels: int, flow: FlowConfig
) -> SampleDraws:
    """Draw noise, timestep and dropout of one sample.

    Args:
        seed: the run's seed.
        epoch: pass over the data.
        key: the sample's key.
        latent_shape: [C, T, 2H, 2W] of its video latents.
        pixels: height x width x frames of its video, for the resolution shift.
        flow: densities and dropout probabilities (paper 3.2, 4.1).
    """
    generator = generator_for(seed, epoch, key, "flow")
    shift = resolution_shift(pixels, flow.shift_min, flow.shift_max, flow.shift_min_pixels, flow.shift_max_pixels)
    timestep = shift_timestep(sample_timesteps(1, generator, flow.logit_mean, flow.logit_std), shift).item()
    text, image, latents = torch.rand(3, generator=generator).tolist()
    drop_image = image < flow.image_dropout
    noise = torch.randn(latent_shape, generator=generator)
    # Drawn last: runs that keep CLIP draw the same numbers as before there was this choice.
    clip = torch.rand((), generator=generator).item()
    return SampleDraws(
        noise=noise,
        timestep=timestep,
        drop_text=text < flow.text_dropout,
        drop_latents=drop_image or latents < flow.vae_reference_dropout,
        drop_clip=drop_image or clip < flow.clip_reference_dropout,
    )
