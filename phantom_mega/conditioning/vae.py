"""The frozen 3D VAE: video to normalized latents and back, one interface for CogVideoX's VAE and the linear one.

B: batch, C: latent channels, F: frames, T = 1 + (F-1)/4: latent frames, h w: latent height and width (pixels / 8).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKLCogVideoX

from phantom_mega.conditioning.linear_vae import LinearVideoVAE
from phantom_mega.conditioning.sources import check_complete, explain_missing, resolve_source
from phantom_mega.errors import UserError
from phantom_mega.geometry import VAE_SPACE_STRIDE, VAE_TIME_STRIDE, latent_frames

if TYPE_CHECKING:  # an export carries this module without the run's configuration
    from phantom_mega.config import ConditioningConfig

CLASSES = {"AutoencoderKLCogVideoX": AutoencoderKLCogVideoX, "LinearVideoVAE": LinearVideoVAE}
# Pixels of a frame above which a GPU works in overlapping tiles: 480p goes through whole (about 5 GB), 720p does not.
GPU_TILE_ABOVE = 640 * 640
# diffusers' own tiles for 480x720. Others must step by whole latents, or seams do not fit and sizes come out wrong.
TILES = dict(
    tile_sample_min_height=240,
    tile_sample_min_width=360,
    tile_overlap_factor_height=1 / 6,
    tile_overlap_factor_width=1 / 5,
)


class FrozenVAE:
    """A VAE in eval mode without gradients, whose latents are shifted and scaled for training.

    Args:
        model: a VAE with diffusers' interface.
        tile_above: pixels of a frame above which encoding and decoding go tile by tile and one video at a time, which
            bounds memory at the price of overlaps computed twice; None never tiles. It depends on the sample's size
            alone, so that all ranks get the same latents.
        device: where it computes, if that is not where its weights are (diffusers' offloading).

    Attributes:
        latent_channels: channels of its latents.
        calls: videos encoded so far (tests count that nothing is encoded twice).
    """

    def __init__(self, model: torch.nn.Module, tile_above: int | None = None, device: torch.device | None = None):
        self.model = model.eval().requires_grad_(False)
        self.device = device or model.device
        self.tile_above = tile_above if isinstance(model, AutoencoderKLCogVideoX) else None
        if self.tile_above is not None:
            model.enable_tiling(**TILES)
        self.latent_channels: int = model.config.latent_channels
        self.calls = 0
        # diffusers' conventions: one shift_factor, or a mean and deviation per channel; CogVideoX has neither.
        config = model.config
        self._shift = self._per_channel(config.get("latents_mean"), config.get("shift_factor") or 0.0)
        self._scale = config.scaling_factor / self._per_channel(config.get("latents_std"), 1.0)

    def _per_channel(self, values: list[float] | None, default: float) -> torch.Tensor:
        """float32 [C or 1, 1, 1, 1]."""
        values = torch.tensor([default] if values is None else list(values), dtype=torch.float32)
        return values.to(self.device).view(-1, 1, 1, 1)

    def _choose_tiling(self, frame_pixels: int) -> None:
        if self.tile_above is not None:
            self.model.use_tiling = self.model.use_slicing = frame_pixels > self.tile_above

    @torch.no_grad()
    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """Video [B, 3, F, height, width] in [-1, 1] to latents [B, C, T, height/8, width/8], float32.

        The posterior's mode, so that a sample's latents are the same in every epoch.

        Raises:
            UserError: F is not 4k+1.
        """
        latent_frames(video.shape[2])
        self.calls += len(video)
        self._choose_tiling(video.shape[-2] * video.shape[-1])
        latents = self.model.encode(video.to(self.device, self.model.dtype)).latent_dist.mode()
        return (latents.float() - self._shift) * self._scale

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [B, C, T, h, w] to video [B, 3, 4T-3, 8h, 8w], float32, clamped to [-1, 1]."""
        frames = VAE_TIME_STRIDE * latents.shape[2] - VAE_TIME_STRIDE + 1
        raw = latents.to(self.device).float() / self._scale + self._shift
        if isinstance(self.model, AutoencoderKLCogVideoX) and latents.shape[2] % 2 == 0:
            # It upsamples an even number of latent frames to 4T, the first one not apart. Its chunks run forward in
            # time, so with one more frame at the end the wanted ones are right.
            raw = torch.cat([raw, raw[:, :, -1:]], dim=2)
        self._choose_tiling(latents.shape[-2] * latents.shape[-1] * VAE_SPACE_STRIDE**2)
        return self.model.decode(raw.to(self.model.dtype)).sample[:, :, :frames].float().clamp(-1, 1)


def load_vae(config: ConditioningConfig, device: torch.device | str, dtype: torch.dtype) -> FrozenVAE:
    """Load the VAE that the recipe names: `linear`, a local directory, `package:NAME/PATH`, or a hub name.

    On a GPU, large frames are tiled (`GPU_TILE_ABOVE`).

    Raises:
        UserError: it cannot be found, or is of a class that is not supported.
    """
    if config.vae == "linear":
        return FrozenVAE(LinearVideoVAE.shipped().to(device))
    source, subfolder = resolve_source(config.vae), config.vae_subfolder
    try:
        name = AutoencoderKLCogVideoX.load_config(source, subfolder=subfolder).get("_class_name")
        if name not in CLASSES:
            where = f"{config.vae}/{subfolder}" if subfolder else config.vae
            raise UserError(f"{where} is a {name}; the VAE must be one of {', '.join(CLASSES)}{_hint(source)}")
        model, loaded = CLASSES[name].from_pretrained(
            source, subfolder=subfolder, dtype=dtype, output_loading_info=True
        )
        check_complete("the VAE", config.vae, loaded["missing_keys"])
        on_gpu = torch.device(device).type == "cuda"
        return FrozenVAE(model.to(device), GPU_TILE_ABOVE if on_gpu else None)
    except UserError:
        raise
    except Exception as error:  # diffusers raises nearly anything on files that are not what their names say
        message = explain_missing("the VAE", config.vae, error)
        raise UserError(f"{message}{'' if subfolder else _hint(source)}") from None


def _hint(source: str) -> str:
    """What to do when a whole pipeline's folder was named."""
    return "; set conditioning.vae_subfolder=vae" if Path(source, "vae", "config.json").is_file() else ""
