"""Sizes: pixels, latent frames, visual tokens. Everything that asks "how many tokens is this clip" asks here.

The VAE maps 4k+1 frames of 8a x 8b pixels to k+1 latent frames of a x b; a visual token joins 1 x 2 x 2 latents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from phantom_mega.errors import UserError

VAE_TIME_STRIDE = 4
VAE_SPACE_STRIDE = 8
PATCH = (1, 2, 2)
PIXELS_PER_TOKEN = VAE_SPACE_STRIDE * PATCH[1]


@dataclass(frozen=True)
class SampleShape:
    """Token counts of one training sample; known from the index alone.

    Args:
        frames: T, latent frames of the video (>= 1).
        height: H, visual tokens along the height of a frame.
        width: W, visual tokens along the width.
        references: n, reference images, each one latent frame of H x W tokens.
        text_tokens: l, tokens of the caption.
        clip_tokens: c, vision-tower tokens of each reference.
    """

    frames: int
    height: int
    width: int
    references: int = 0
    text_tokens: int = 0
    clip_tokens: int = 0

    @property
    def frame_tokens(self) -> int:
        """H*W, tokens of one latent frame."""
        return self.height * self.width

    @property
    def video_tokens(self) -> int:
        """T*H*W, the tokens that carry noise and loss."""
        return self.frames * self.frame_tokens

    @property
    def reference_tokens(self) -> int:
        """n*H*W, the clean tokens at the temporal tail."""
        return self.references * self.frame_tokens

    @property
    def visual_tokens(self) -> int:
        """Tokens of the visual stream F_v = [video ; references]."""
        return self.video_tokens + self.reference_tokens

    @property
    def text_stream_tokens(self) -> int:
        """Tokens of the text stream F_t = [text ; CLIP tokens of every reference]."""
        return self.text_tokens + self.references * self.clip_tokens


def latent_frames(num_frames: int) -> int:
    """Latent frames of a clip: 1 + (F-1)/4.

    Raises:
        UserError: `num_frames` is not 4k+1; names the nearest counts that are.
    """
    if num_frames < 1 or (num_frames - 1) % VAE_TIME_STRIDE:
        below = max(1, (num_frames - 1) // VAE_TIME_STRIDE * VAE_TIME_STRIDE + 1)
        raise UserError(f"{num_frames} frames is not 4k+1; the nearest counts are {below} and {below + 4}")
    return 1 + (num_frames - 1) // VAE_TIME_STRIDE


def token_grid(num_frames: int, height: int, width: int) -> tuple[int, int, int]:
    """(T, H, W) visual tokens of a clip of `num_frames` x `height` x `width` pixels.

    Raises:
        UserError: sides that are not multiples of 16, or frames that are not 4k+1.
    """
    for name, side in (("height", height), ("width", width)):
        if side < PIXELS_PER_TOKEN or side % PIXELS_PER_TOKEN:
            near = max(PIXELS_PER_TOKEN, round(side / PIXELS_PER_TOKEN) * PIXELS_PER_TOKEN)
            raise UserError(f"{name} {side} is not a multiple of {PIXELS_PER_TOKEN}; the nearest is {near}")
    return latent_frames(num_frames), height // PIXELS_PER_TOKEN, width // PIXELS_PER_TOKEN


def bucket_size(pixels: int, aspect: float) -> tuple[int, int]:
    """(height, width) in pixels, multiples of 16, with an area near `pixels` and width/height near `aspect`."""
    height = max(1, round(math.sqrt(pixels / aspect) / PIXELS_PER_TOKEN))
    width = max(1, round(math.sqrt(pixels * aspect) / PIXELS_PER_TOKEN))
    return height * PIXELS_PER_TOKEN, width * PIXELS_PER_TOKEN


def cover_size(source: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """Smallest (height, width) with the source's aspect that covers the target: resize to it, then crop the centre."""
    scale = max(target[0] / source[0], target[1] / source[1])
    return max(target[0], round(source[0] * scale)), max(target[1], round(source[1] * scale))


def contain_size(source: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """Largest (height, width) with the source's aspect inside the target: resize to it, then pad with white."""
    scale = min(target[0] / source[0], target[1] / source[1])
    fit = (round(source[0] * scale), round(source[1] * scale))
    return max(1, min(target[0], fit[0])), max(1, min(target[1], fit[1]))


def patchify(latents: torch.Tensor) -> torch.Tensor:
    """Latent frames [C, T, 2H, 2W] -> visual tokens [T*H*W, C*4], frame by frame, row by row."""
    channels, frames, height, width = latents.shape
    h, w = height // PATCH[1], width // PATCH[2]
    x = latents.reshape(channels, frames, h, PATCH[1], w, PATCH[2])
    return x.permute(1, 2, 4, 0, 3, 5).reshape(frames * h * w, channels * PATCH[1] * PATCH[2])


def unpatchify(tokens: torch.Tensor, frames: int, height: int, width: int) -> torch.Tensor:
    """Visual tokens [T*H*W, C*4] -> latent frames [C, T, 2H, 2W]; the inverse of `patchify`."""
    channels = tokens.shape[-1] // (PATCH[1] * PATCH[2])
    x = tokens.reshape(frames, height, width, channels, PATCH[1], PATCH[2])
    return x.permute(3, 0, 1, 4, 2, 5).reshape(channels, frames, height * PATCH[1], width * PATCH[2])
