"""The input head: one decoded sample in, the features that the trained model reads out. Frozen.

C: latent channels, T: latent frames, H W: visual-token grid, n: references, l: caption tokens, c: CLIP tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from phantom_mega.conditioning.text import load_text_encoder
from phantom_mega.conditioning.vae import load_vae
from phantom_mega.conditioning.vision import load_vision_tower
from phantom_mega.config import RunConfig
from phantom_mega.errors import UserError
from phantom_mega.geometry import PATCH, SampleShape


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

    def zeros(self, shape: SampleShape, device: torch.device | str = "cpu") -> SampleFeatures:
        """Features of a sample that could not be read."""
        return SampleFeatures(*(torch.zeros(size, device=device) for size in self.sizes(shape)), valid=False)


class InputHead:
    """VAE, text encoder and vision tower, checked against the model's sizes.

    Args:
        config: `conditioning` says what to load, `model` which widths are expected, `precision` the type on a GPU.
        device: where they run.

    Raises:
        UserError: an encoder cannot be loaded, or its width is not the model's; names the right value.
    """

    def __init__(self, config: RunConfig, device: torch.device | str):
        on_gpu = torch.device(device).type == "cuda"
        dtype = torch.bfloat16 if on_gpu and config.precision.bf16 else torch.float32
        self.device = torch.device(device)
        self.vae = load_vae(config.conditioning, device, dtype)
        self.text = load_text_encoder(config.conditioning, device)
        self.vision = load_vision_tower(config.conditioning, device, dtype)
        model, names = config.model, config.conditioning
        for field, wanted, found, name in (
            ("model.latent_channels", model.latent_channels, self.vae.latent_channels, names.vae),
            ("model.text_dim", model.text_dim, self.text.dim, names.text_encoder),
            ("model.clip_dim", model.clip_dim, self.vision.dim, names.vision_encoder),
            ("conditioning.clip_tokens", names.clip_tokens, self.vision.tokens, names.vision_encoder),
        ):
            if wanted != found:
                raise UserError(f"{field} is {wanted}, but {name} gives {found}; set {field}={found}")
        self.dims = FeatureDims(model.latent_channels, model.text_dim, model.clip_dim)

    def encode(self, decoded) -> SampleFeatures:
        """Encode one `DecodedTriplet`; a sample with an error gives zeros and `valid=False`."""
        shape = decoded.sample.shape
        if decoded.error is not None:
            return self.dims.zeros(shape, self.device)
        latents = self.vae.encode(decoded.video[None])[0]
        references = self.dims.zeros(shape, self.device).reference_latents
        if len(decoded.references):
            references = self.vae.encode(decoded.references[:, :, None])[:, :, 0]
        text = self.text.encode([decoded.caption], [decoded.sample.text_tokens])[0]
        return SampleFeatures(latents, references, text, self.vision.encode(decoded.crops))
