"""A linear video autoencoder: causal 4x8x8 patches on a PCA basis, with the interface of diffusers' CogVideoX VAE.

It needs no download and no GPU, so a `tiny` run trains in real latents, and what it generates can be decoded and seen.
Axes: B videos, F pixel frames (4k + 1), T = k + 1 latent frames, H W pixels, C latent channels.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from safetensors import safe_open
from safetensors.torch import save_file

from phantom_mega.errors import UserError

SHIPPED = Path(__file__).with_name("linear_vae.safetensors")
TIME_STRIDE, PATCH_SIDE, RGB = 4, 8, 3
FRAME_SIZE = PATCH_SIDE * PATCH_SIDE * RGB
GROUP_SIZE = TIME_STRIDE * FRAME_SIZE
FRAME_GAIN = TIME_STRIDE**0.5


class LinearVideoVAE(ModelMixin, ConfigMixin):
    """Patches of the first frame (8x8x3 = 192 numbers) and of each next 4 frames (768) become C numbers by PCA.

    The columns of both bases are orthonormal: decoding is the transpose, and an error in latents is the same error in
    pixels. The PCA spectrum is kept, not whitened: the channels that carry the picture then carry the loss too, where
    whitening would give the faintest texture the weight of the brightness. One `scaling_factor` brings the variance
    over all channels to 1, as for any other VAE of diffusers.

    A reference image is encoded as a single frame, and the transformer compares it with later latents, so both must
    speak alike: one mean frame serves both bases, first-frame latents are multiplied by sqrt(4) = 2 (the norm of four
    equal frames against one; undone on decoding), and the first-frame basis is rotated onto the other's (`fit`).

    The shipped basis was fitted on two short clips (bigbuckbunny, bikes) and measured on a third, carphone
    (176x144), on 2026-11-23 with `python tools/fit_linear_vae.py`, over windows of 17 frames:

    - held out, carphone 176x144: PSNR 31.4 dB (first frames alone 36.2); scaled latents have variance 1.42
    - fitted on: bigbuckbunny 256x144 31.0 dB (34.2), variance 1.15; bikes 336x144 32.8 dB (41.1), variance 0.86
    - the other two held out in turn (`--held-out`): bigbuckbunny 29.4 dB, bikes 30.6 dB
    - still videos of carphone's frames: the first latent differs from the later ones by 5.5% of their norm (0.3% of
      their variance); without the rotation by 69%
    - scaled channels run from a standard deviation of 7.5 (brightness) down to 0.14, the price of not whitening

    Args:
        latent_channels: C.
        scaling_factor: multiplies what `encode` gives, by the caller, as with every VAE of diffusers.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 48,
        scaling_factor: float = 1.0,
        in_channels: int = RGB,
        temporal_compression_ratio: int = TIME_STRIDE,
        spatial_compression_ratio: int = PATCH_SIDE,
    ):
        super().__init__()
        if (in_channels, temporal_compression_ratio, spatial_compression_ratio) != (RGB, TIME_STRIDE, PATCH_SIDE):
            raise UserError(
                "LinearVideoVAE has in_channels=3, temporal_compression_ratio=4, spatial_compression_ratio=8"
            )
        if not 1 <= latent_channels <= FRAME_SIZE:
            raise UserError(
                f"latent_channels={latent_channels}: a frame's patch has {FRAME_SIZE} numbers, use 1 to that"
            )
        self.register_buffer("mean", torch.zeros(FRAME_SIZE))
        self.register_buffer("frame_basis", torch.eye(FRAME_SIZE, latent_channels))
        self.register_buffer("group_basis", torch.eye(GROUP_SIZE, latent_channels))

    @apply_forward_hook
    def encode(self, x: torch.Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple:
        """Encode videos; the posterior has no spread, so `mode()` and `sample()` agree.

        Args:
            x: [B, 3, F, H, W] in [-1, 1]; F = 4k + 1, H and W multiples of 8.
            return_dict: False gives a tuple.

        Returns:
            `latent_dist` over [B, C, T, H/8, W/8], not yet multiplied by `config.scaling_factor`.

        Raises:
            UserError: a size that does not fit; names the nearest that does.
        """
        _check_video(x)
        first = _patches(x[:, :, :1], 1) - self.mean
        latents = FRAME_GAIN * first @ self.frame_basis
        if x.shape[2] > 1:
            groups = _patches(x[:, :, 1:], TIME_STRIDE) - self.mean.repeat(TIME_STRIDE)
            latents = torch.cat([latents, groups @ self.group_basis], dim=1)
        latents = latents.movedim(-1, 1)
        moments = torch.cat([latents, torch.full_like(latents, -30.0)], dim=1)
        posterior = DiagonalGaussianDistribution(moments, deterministic=True)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook
    def decode(self, z: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple:
        """Decode latents [B, C, T, h, w] (already divided by `config.scaling_factor`) to [B, 3, 4T - 3, 8h, 8w]."""
        if z.ndim != 5 or z.shape[1] != self.config.latent_channels:
            raise UserError(
                f"latents have shape {tuple(z.shape)}; [B, {self.config.latent_channels}, T, h, w] is needed"
            )
        z = z.movedim(1, -1)
        video = _frames(z[:, :1] / FRAME_GAIN @ self.frame_basis.T + self.mean, 1)
        if z.shape[1] > 1:
            groups = z[:, 1:] @ self.group_basis.T + self.mean.repeat(TIME_STRIDE)
            video = torch.cat([video, _frames(groups, TIME_STRIDE)], dim=2)
        return DecoderOutput(sample=video) if return_dict else (video,)

    def forward(self, sample: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple:
        """Encode and decode [B, 3, F, H, W]."""
        return self.decode(self.encode(sample).latent_dist.mode(), return_dict=return_dict)

    @classmethod
    def fit(cls, videos: Iterable[torch.Tensor], latent_channels: int = 48) -> LinearVideoVAE:
        """PCA in closed form: eigenvectors of the patches' covariance, each video weighing the same.

        The covariance is averaged with its mirror images (left-right, and forward-backward in time), which the world
        has too. The first-frame basis spans the leading frame components and is rotated by the orthogonal Procrustes
        solution, weighted by the frames' covariance, so that a still video's first latent comes nearest its later ones.

        Args:
            videos: of [3, F, H, W] in [-1, 1]; F = 4k + 1 with k >= 1, sizes may differ.
            latent_channels: C.
        """
        means, frame_moments, group_moments = [], [], []
        for video in videos:
            _check_video(video[None])
            groups = _patches(video[None, :, 1:].double(), TIME_STRIDE).flatten(0, 3)
            frames = groups.reshape(-1, FRAME_SIZE)
            means.append(frames.mean(0))
            frame_moments.append(frames.T @ frames / len(frames))
            group_moments.append(groups.T @ groups / len(groups))
        if not means:
            raise UserError("no video was given to fit the basis on")
        mirror = torch.arange(FRAME_SIZE).reshape(PATCH_SIDE, PATCH_SIDE, RGB).flip(1).flatten()
        mean = torch.stack(means).mean(0)
        mean = (mean + mean[mirror]) / 2
        tiled = mean.repeat(TIME_STRIDE)
        groups = torch.arange(GROUP_SIZE).reshape(TIME_STRIDE, FRAME_SIZE)
        frame_covariance = _symmetric(torch.stack(frame_moments).mean(0), [mirror]) - torch.outer(mean, mean)
        group_covariance = _symmetric(
            torch.stack(group_moments).mean(0), [groups[:, mirror].flatten(), groups.flip(0).flatten()]
        ) - torch.outer(tiled, tiled)
        frame_basis = _leading(frame_covariance, latent_channels)
        group_basis = _leading(group_covariance, latent_channels)
        # A still video's group latent is 2 * still^T frame; its first latent is 2 * (frame_basis R)^T frame.
        still = group_basis.reshape(TIME_STRIDE, FRAME_SIZE, latent_channels).sum(0) / FRAME_GAIN
        variance = (group_basis.T @ group_covariance @ group_basis).trace().item() / latent_channels
        vae = cls(latent_channels, scaling_factor=variance**-0.5)
        vae.mean.copy_(mean)
        vae.frame_basis.copy_(_aligned(frame_basis, frame_covariance, still))
        vae.group_basis.copy_(group_basis)
        return vae.eval()

    def save_file(self, path: Path) -> None:
        """Write weights and configuration into one safetensors file, as shipped with the package."""
        config = {key: value for key, value in self.config.items() if not key.startswith("_")}
        state = {name: tensor.float().contiguous() for name, tensor in self.state_dict().items()}
        save_file(state, path, metadata={"config": json.dumps(config)})

    @classmethod
    def shipped(cls) -> LinearVideoVAE:
        """The basis that comes with the package.

        Raises:
            UserError: the file is missing from the installation.
        """
        if not SHIPPED.is_file():
            raise UserError(f"{SHIPPED} is missing; reinstall the package or write it with tools/fit_linear_vae.py")
        with safe_open(SHIPPED, "pt") as file:
            vae = cls(**json.loads(file.metadata()["config"]))
            vae.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (not a dict)
        return vae.eval()


def _check_video(x: torch.Tensor) -> None:
    """Raise UserError unless x is [B, 3, 4k + 1, 8h, 8w]."""
    if x.ndim != 5 or x.shape[1] != RGB:
        raise UserError(f"the video has shape {tuple(x.shape)}; [B, 3, F, H, W] is needed")
    frames, height, width = x.shape[2:]
    if frames % TIME_STRIDE != 1:
        nearest = max(round((frames - 1) / TIME_STRIDE), 0) * TIME_STRIDE + 1
        raise UserError(f"the video has {frames} frames; 4k + 1 are needed, the nearest is {nearest}")
    if height % PATCH_SIDE or width % PATCH_SIDE or not height or not width:
        nearest = [max(round(side / PATCH_SIDE), 1) * PATCH_SIDE for side in (height, width)]
        raise UserError(f"the video is {height}x{width}; multiples of 8 are needed, nearest {nearest[0]}x{nearest[1]}")


def _patches(x: torch.Tensor, time: int) -> torch.Tensor:
    """[B, 3, T * time, 8h, 8w] -> [B, T, h, w, time * 192], patch axes ordered time, row, column, colour."""
    b, c, f, height, width = x.shape
    x = x.reshape(b, c, f // time, time, height // PATCH_SIDE, PATCH_SIDE, width // PATCH_SIDE, PATCH_SIDE)
    return x.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4)


def _frames(patches: torch.Tensor, time: int) -> torch.Tensor:
    """The inverse of `_patches`."""
    b, t, h, w, _ = patches.shape
    x = patches.reshape(b, t, h, w, time, PATCH_SIDE, PATCH_SIDE, RGB)
    return x.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(b, RGB, t * time, h * PATCH_SIDE, w * PATCH_SIDE)


def _symmetric(moment: torch.Tensor, mirrors: list[torch.Tensor]) -> torch.Tensor:
    """The mean of a second moment over mirror images of the patches, each an index permutation."""
    for mirror in mirrors:
        moment = (moment + moment[mirror][:, mirror]) / 2
    return moment


def _leading(covariance: torch.Tensor, count: int) -> torch.Tensor:
    """Eigenvectors [size, count] of the largest eigenvalues, in falling order, their signs fixed."""
    return _signed(torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :count])


def _signed(vectors: torch.Tensor) -> torch.Tensor:
    """Columns whose first largest entry is positive.

    A vector that is odd under a mirror has its largest entry twice, with either sign: rounding must not choose between
    them, else a fit at another number of threads flips channels.
    """
    size = vectors.abs()
    first = (size > 0.999 * size.amax(0)).int().argmax(0)
    return vectors * vectors.gather(0, first[None]).sign()


def _aligned(basis: torch.Tensor, covariance: torch.Tensor, still: torch.Tensor) -> torch.Tensor:
    """Rotate an orthonormal basis [size, C] towards `still` [size, C]: orthogonal Procrustes, weighted by covariance.

    Channels that no still picture excites (those odd in time) are not determined by that. They take the components
    that are left, in falling order of variance, so that every fit gives the same basis.
    """
    left, size, right = torch.linalg.svd(basis.T @ covariance @ still)
    kept = size > 1e-9 * size[0]
    aligned = basis @ left[:, kept] @ right[kept]
    count = int((~kept).sum())
    if count:
        free = right[~kept]
        channels = free.square().sum(0).argsort(descending=True, stable=True)[:count].sort().values
        u, _, v = torch.linalg.svd(free[:, channels])
        free = (u @ v).T @ free  # the orthonormal rows nearest to those channels' unit vectors
        rest = basis @ left[:, ~kept]
        aligned += _signed(rest @ _leading(rest.T @ covariance @ rest, count)) @ free
    return aligned
