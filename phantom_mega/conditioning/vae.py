"""The frozen 3D VAE: video to normalized latents and back, one interface for CogVideoX's VAE and the linear one.

B: batch, F: frames, T = 1 + (F-1)/4: latent frames.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX

from phantom_mega.conditioning.linear_vae import LinearVideoVAE
from phantom_mega.conditioning.sources import explain_missing, resolve_source
from phantom_mega.config import ConditioningConfig
from phantom_mega.errors import UserError
from phantom_mega.geometry import latent_frames

CLASSES = {"AutoencoderKLCogVideoX": AutoencoderKLCogVideoX, "LinearVideoVAE": LinearVideoVAE}


class FrozenVAE:
    """A VAE in eval mode without gradients, whose latents are shifted and scaled for training.

    Args:
        model: a VAE with diffusers' interface.

    Attributes:
        latent_channels: channels of its latents.
        calls: videos encoded so far (tests count that nothing is encoded twice).
    """

    def __init__(self, model: torch.nn.Module):
        self.model = model.eval().requires_grad_(False)
        self.latent_channels: int = model.config.latent_channels
        self.calls = 0

    @property
    def _scale(self) -> tuple[float, float]:
        return getattr(self.model.config, "shift_factor", None) or 0.0, self.model.config.scaling_factor

    @torch.no_grad()
    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """Video [B, 3, F, height, width] in [-1, 1] to latents [B, C, T, height/8, width/8], float32.

        The posterior's mode, so that a sample's latents are the same in every epoch.

        Raises:
            UserError: F is not 4k+1.
        """
        latent_frames(video.shape[2])
        self.calls += len(video)
        shift, scale = self._scale
        latents = self.model.encode(video.to(self.model.device, self.model.dtype)).latent_dist.mode()
        return (latents.float() - shift) * scale

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [B, C, T, h, w] to video [B, 3, F, 8h, 8w], float32, clamped to [-1, 1]."""
        shift, scale = self._scale
        raw = (latents.float() / scale + shift).to(self.model.device, self.model.dtype)
        return self.model.decode(raw).sample.float().clamp(-1, 1)


def load_vae(config: ConditioningConfig, device: torch.device | str, dtype: torch.dtype) -> FrozenVAE:
    """Load the VAE that the recipe names: `linear`, a local directory, or a hub name.

    On a GPU, tiling is on: a 720p clip does not fit otherwise.

    Raises:
        UserError: it cannot be found, or is of a class that is not supported.
    """
    if config.vae == "linear":
        return FrozenVAE(LinearVideoVAE.shipped().to(device))
    source = resolve_source(config.vae)
    try:
        model_class = _vae_class(source, config.vae_subfolder)
        model = model_class.from_pretrained(source, subfolder=config.vae_subfolder, torch_dtype=dtype)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise explain_missing("the VAE", config.vae, error) from None
    if torch.device(device).type == "cuda" and hasattr(model, "enable_tiling"):
        model.enable_tiling()
    return FrozenVAE(model.to(device))


def _vae_class(source: str, subfolder: str | None) -> type:
    config = Path(source, subfolder or "", "config.json")
    if not config.is_file():  # a hub name: only CogVideoX's VAE is published there
        return AutoencoderKLCogVideoX
    name = json.loads(config.read_text()).get("_class_name")
    if name not in CLASSES:
        raise UserError(f"{config}: VAE class {name!r} is not supported; use one of {', '.join(CLASSES)}")
    return CLASSES[name]
