"""From encoded samples to what one training microbatch needs: noisy tokens, targets, weights, layout.

S: visual tokens of the padded pack, B: samples, P: numbers of a visual token (4 x latent channels).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch

from phantom_mega.conditioning.head import SampleFeatures
from phantom_mega.config import RunConfig
from phantom_mega.data.plan import Pack, PlannedSample
from phantom_mega.flow import interpolate, velocity
from phantom_mega.geometry import patchify
from phantom_mega.packs import PackInputs, PackLayout
from phantom_mega.training.draws import SampleDraws, draw_sample
from phantom_mega.windows import WindowSpec


@dataclass(frozen=True)
class TrainingBatch:
    """One microbatch.

    Attributes:
        inputs: what the model reads.
        target: float32 [S, P], velocity of video tokens, zero elsewhere.
        weight: float32 [S], 1 on video tokens of readable samples.
    """

    inputs: PackInputs
    target: torch.Tensor
    weight: torch.Tensor


def training_draws(sample: PlannedSample, latent_shape: tuple[int, ...], config: RunConfig) -> SampleDraws:
    """Draws of a sample in its epoch, by the run's seed (`draws.draw_sample`)."""
    pixels = sample.height * sample.width * sample.num_frames
    return draw_sample(config.train.seed, sample.epoch, sample.key, latent_shape, pixels, config.flow)


def build_batch(
    pack: Pack,
    features: list[SampleFeatures],
    empty_text: torch.Tensor,
    config: RunConfig,
    device: torch.device | str,
    dtype: torch.dtype,
    draw: Callable[[PlannedSample, tuple[int, ...], RunConfig], SampleDraws] = training_draws,
) -> TrainingBatch:
    """Noise the latents, drop conditions, lay out the pack.

    Args:
        pack: the planned samples.
        features: their encodings, in the same order, without dropout.
        empty_text: [l0, text_dim], features of the empty prompt.
        config: flow, data and model sections are read.
        device: where the tensors go.
        dtype: type of the model's inputs; targets and noise mixing stay float32.
        draw: noise, timestep and dropout of a sample, given its latents' shape.
    """
    shapes, visual, target, texts, clips, timesteps, valid = [], [], [], [], [], [], []
    for sample, encoded in zip(pack, features, strict=True):
        latents = encoded.latents.float()
        draws = draw(sample, tuple(latents.shape), config)
        noise = draws.noise.to(latents.device)
        tokens = [patchify(interpolate(latents, noise, draws.timestep))]
        target.append(patchify(velocity(latents, noise)))
        if len(encoded.reference_latents):
            references = encoded.reference_latents.float().transpose(0, 1)
            tokens.append(patchify(torch.zeros_like(references) if draws.drop_latents else references))
            target.append(torch.zeros_like(tokens[-1]))
        text = empty_text.to(encoded.text) if draws.drop_text else encoded.text
        clip = torch.zeros_like(encoded.clip) if draws.drop_clip else encoded.clip
        shapes.append(dataclasses.replace(sample.shape, text_tokens=len(text)))
        visual += tokens
        texts.append(text)
        clips.append(clip.flatten(0, 1))
        timesteps.append(draws.timestep)
        valid.append(encoded.valid)
    model = config.model
    layout = PackLayout.build(
        shapes, WindowSpec.of(model), model.rope_axes_dim, model.rope_theta,
        config.data.seq_length, config.data.text_seq_length, device,
    )  # fmt: skip
    readable = torch.tensor(valid, device=device)[layout.visual_sample]
    inputs = PackInputs(
        visual=_pad(torch.cat(visual), layout.seq_length).to(device, dtype),
        timestep=torch.tensor(timesteps, dtype=torch.float32, device=device),
        text=torch.cat(texts).to(device, dtype),
        clip=torch.cat(clips).to(device, dtype),
        layout=layout,
    )
    return TrainingBatch(
        inputs, _pad(torch.cat(target), layout.seq_length).to(device), (layout.video_mask & readable).float()
    )


def _pad(tokens: torch.Tensor, length: int) -> torch.Tensor:
    return torch.cat([tokens, tokens.new_zeros(length - len(tokens), tokens.shape[1])])
