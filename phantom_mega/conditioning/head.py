"""The input head: decoded samples in, the features that the trained model reads out. Frozen (paper 3.2).

C: latent channels, T: latent frames, H W: visual-token grid, n: references, l: caption tokens, c: CLIP tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from phantom_mega.conditioning.text import load_text_encoder
from phantom_mega.conditioning.vae import load_vae
from phantom_mega.conditioning.vision import load_vision_tower
from phantom_mega.config import RunConfig
from phantom_mega.data.decode import DecodedTriplet
from phantom_mega.errors import UserError
from phantom_mega.geometry import PATCH, SampleShape

# Pixels of single frames that go through the VAE together: as much memory as a chunk of one 480p clip takes.
BATCH_PIXELS = 4 << 20


@dataclass(frozen=True)
class FeatureDims:
    """Widths of the four features; with a `SampleShape` they give every tensor's size."""

    latent_channels: int
    text_dim: int
    clip_dim: int

    def sizes(self, shape: SampleShape) -> tuple[tuple[int, ...], ...]:
        """Sizes of `SampleFeatures.tensors()`."""
        height, width, n = shape.height * PATCH[1], shape.width * PATCH[2], shape.references
        return (
            (self.latent_channels, shape.frames, height, width),
            (n, self.latent_channels, height, width),
            (shape.text_tokens, self.text_dim),
            (n, shape.clip_tokens, self.clip_dim),
        )


@dataclass
class SampleFeatures:
    """Encodings of one sample, without dropout; float32.

    Attributes:
        latents: [C, T, 2H, 2W], the video.
        reference_latents: [n, C, 2H, 2W], each reference as one latent frame.
        text: [l, text_dim].
        clip: [n, c, clip_dim].
        valid: False for a sample that could not be read; its tensors are zeros and it has no loss.
    """

    latents: torch.Tensor
    reference_latents: torch.Tensor
    text: torch.Tensor
    clip: torch.Tensor
    valid: bool = True

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The four tensors, in the order of the fields."""
        return self.latents, self.reference_latents, self.text, self.clip

    @classmethod
    def zeros(cls, shape: SampleShape, dims: FeatureDims, device: torch.device | str = "cpu") -> SampleFeatures:
        """Features of a sample that could not be read."""
        return cls(*(torch.zeros(size, device=device) for size in dims.sizes(shape)), valid=False)


class InputHead:
    """VAE, text encoder and vision tower, checked against the model's sizes.

    Args:
        config: `conditioning` says what to load, `model` which widths are expected, `data` how captions are cut,
            `precision` the type on a GPU.
        device: where they run.

    Raises:
        UserError: an encoder cannot be loaded, or its width is not the model's; names the right value.
    """

    def __init__(self, config: RunConfig, device: torch.device | str):
        on_gpu = torch.device(device).type == "cuda"
        dtype = torch.bfloat16 if on_gpu and config.precision.bf16 else torch.float32
        self.device, self.max_text_tokens = torch.device(device), config.data.max_text_tokens
        model, names = config.model, config.conditioning
        self.vae = load_vae(names, device, dtype)
        self.text = load_text_encoder(names, device)
        self.vision = load_vision_tower(names, device, dtype)
        for field, wanted, found, name in (
            ("model.latent_channels", model.latent_channels, self.vae.latent_channels, names.vae),
            ("model.text_dim", model.text_dim, self.text.dim, names.text_encoder),
            ("model.clip_dim", model.clip_dim, self.vision.dim, names.vision_encoder),
            ("conditioning.clip_tokens", names.clip_tokens, self.vision.tokens, names.vision_encoder),
        ):
            if wanted != found:
                raise UserError(f"{field} is {wanted}, but {name} gives {found}; set {field}={found}")
        limit = self.text.max_positions
        if limit and self.max_text_tokens > limit:
            raise UserError(
                f"data.max_text_tokens is {self.max_text_tokens}, but {names.text_encoder} reads at most {limit}; "
                f"set data.max_text_tokens={limit}"
            )
        self.dims = FeatureDims(model.latent_channels, model.text_dim, model.clip_dim)

    def encode(self, decoded: DecodedTriplet) -> SampleFeatures:
        """Encode one sample; one with an error gives zeros and `valid=False`."""
        return self.encode_many([decoded])[0]

    def encode_many(self, samples: Sequence[DecodedTriplet]) -> list[SampleFeatures]:
        """Encode samples, each as `encode` would up to rounding; captions, images and references go in batches.

        Raises:
            UserError: a caption's length is not the planned one.
        """
        readable = [sample for sample in samples if sample.error is None]
        texts = self.text.encode(
            [sample.caption for sample in readable],
            [sample.sample.text_tokens for sample in readable],
            self.max_text_tokens,
        )
        clip = self.vision.encode([crop for sample in readable for crop in sample.crops])
        clips = clip.split([len(sample.crops) for sample in readable])
        latents = self._latents(readable)
        encoded = (SampleFeatures(*parts, *rest) for parts, *rest in zip(latents, texts, clips))
        return [
            next(encoded) if sample.error is None else SampleFeatures.zeros(sample.sample.shape, self.dims, self.device)
            for sample in samples
        ]

    def _latents(self, samples: Sequence[DecodedTriplet]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(latents, reference_latents) of each sample; an image sample is a single frame, as references are."""
        images = [image for sample in samples for image in _single_frames(sample)]
        frames = iter(self._encode_images(images))
        out = []
        for sample in samples:
            one = sample.video.shape[1] == 1
            latents = next(frames)[:, None] if one else self.vae.encode(sample.video[None])[0]
            height, width = latents.shape[-2:]
            references = [next(frames) for _ in sample.references]
            empty = latents.new_zeros(0, len(latents), height, width)
            out.append((latents, torch.stack(references) if references else empty))
        return out

    def _encode_images(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        """Latent frames [C, h/8, w/8] of images [3, h, w]; those of equal size share a call."""
        by_size = defaultdict(list)
        for i, image in enumerate(images):
            by_size[image.shape[-2:]].append(i)
        latents: list[torch.Tensor | None] = [None] * len(images)
        for (height, width), members in by_size.items():
            step = max(1, BATCH_PIXELS // (height * width))
            for at in range(0, len(members), step):
                chunk = members[at : at + step]
                batch = torch.stack([images[i].to(self.device) for i in chunk])
                for i, latent in zip(chunk, self.vae.encode(batch[:, :, None])):
                    latents[i] = latent[:, 0]
        return latents


def _single_frames(sample: DecodedTriplet) -> list[torch.Tensor]:
    """Images [3, h, w] of a sample: itself if it is one, then its references."""
    return [*([sample.video[:, 0]] if sample.video.shape[1] == 1 else []), *sample.references]
