"""Which resolution, size, length and references a sample trains at: draws per (seed, epoch, key), vectorised.

Paper 4.1: 256p and 480p first, then 720p mixed in, with several clip lengths and aspect ratios.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from phantom_mega.config import DataConfig
from phantom_mega.errors import UserError
from phantom_mega.geometry import bucket_size, latent_frames


@dataclass(frozen=True)
class Bucket:
    """One training size: pixels, and the resolution that it belongs to."""

    resolution: str
    height: int
    width: int


def key_uniforms(keys: np.ndarray, seed: int, epoch: int, count: int) -> np.ndarray:
    """Uniform draws in [0, 1), float64 [rows, count], each row a function of (seed, epoch, key) alone."""
    draws = np.empty((len(keys), count))
    words = (count + 7) // 8
    prefix = f"{seed}/{epoch}/".encode()
    for i, key in enumerate(keys):
        name = prefix + str(key).encode()
        digest = b"".join(hashlib.blake2b(name, salt=word.to_bytes(2, "little")).digest() for word in range(words))
        draws[i] = np.frombuffer(digest, dtype="<u8")[:count] / 2.0**64
    return np.minimum(draws, np.nextafter(1.0, 0.0))


def parse_aspect(text: str) -> float:
    """`16:9` -> 16/9.

    Raises:
        UserError: not of the form width:height.
    """
    width, _, height = text.partition(":")
    try:
        return float(width) / float(height)
    except (ValueError, ZeroDivisionError):
        raise UserError(f"data.aspect_ratios: {text!r} is not width:height, as 16:9 is") from None


@dataclass(frozen=True)
class Assignment:
    """Where each row of an index trains in one epoch; arrays of [rows].

    Attributes:
        resolution: number of the resolution, -1 where none fits.
        height, width: target pixels.
        frames: target frames, 4k+1.
        stride: source frames per training frame (thinning to the recipe's frame rate).
    """

    resolution: np.ndarray
    height: np.ndarray
    width: np.ndarray
    frames: np.ndarray
    stride: np.ndarray


def assign(data: DataConfig, columns: dict[str, np.ndarray], draw: np.ndarray) -> Assignment:
    """Choose a bucket for every row.

    Args:
        data: resolutions, aspect ratios, frame rate, largest upscale.
        columns: `height`, `width`, `frames`, `fps` of the rows.
        draw: uniform [rows], decides the resolution by weight among those that the clip is large enough for.

    Raises:
        UserError: no resolutions, or a frame count that is not 4k+1.
    """
    if not data.resolutions:
        raise UserError("data.resolutions is empty; name at least one, as {256p: {pixels: 65536, frames: [1, 37]}}")
    for name, resolution in data.resolutions.items():
        for count in resolution.frames:
            try:
                latent_frames(count)
            except UserError as error:
                raise UserError(f"data.resolutions.{name}.frames: {error}") from None
    height, width = columns["height"].astype(float), columns["width"].astype(float)
    ratios = np.array([parse_aspect(text) for text in data.aspect_ratios])
    nearest = np.abs(np.log(width / height)[:, None] - np.log(ratios)).argmin(1)
    stride = np.maximum(np.round(columns["fps"] / data.frame_rate), 1).astype(int)
    usable = (columns["frames"] - 1) // stride + 1

    specs = list(data.resolutions.values())
    sizes = np.array([[bucket_size(spec.pixels, ratio) for ratio in ratios] for spec in specs])
    target_height, target_width = sizes[:, nearest, 0], sizes[:, nearest, 1]  # [resolutions, rows]
    upscale = np.maximum(target_height / height, target_width / width)
    frames = np.stack([_longest(np.array(sorted(spec.frames)), usable) for spec in specs])
    fits = (upscale <= data.max_upscale + 1e-9) & (frames > 0)
    weight = np.where(fits, np.array([spec.weight for spec in specs])[:, None], 0.0)
    total = weight.sum(0)
    chosen = (np.cumsum(weight, 0) <= draw * total).sum(0).clip(max=len(specs) - 1)
    rows = np.arange(len(height))
    return Assignment(
        resolution=np.where(total > 0, chosen, -1),
        height=target_height[chosen, rows],
        width=target_width[chosen, rows],
        frames=frames[chosen, rows],
        stride=stride,
    )


def _longest(counts: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """The largest of `counts` that each clip can fill; 0 where none is."""
    place = np.searchsorted(counts, usable, side="right")
    return np.where(place > 0, counts[np.maximum(place - 1, 0)], 0)


def choose_references(kinds: list[str], allowed: list[str], most: int, draw: np.ndarray) -> tuple[int, ...]:
    """References of one sample in one epoch, in drawn order: 1..most of an allowed kind; none if there are none.

    Args:
        kinds: of the sample's references.
        allowed: kinds to train on.
        most: the model's `max_references`.
        draw: uniforms [1 + references]: the first decides how many, the others the order.
    """
    usable = [i for i, kind in enumerate(kinds) if kind in allowed]
    if not usable or most == 0:
        return ()
    count = 1 + math.floor(draw[0] * min(len(usable), most))
    return tuple(sorted(usable, key=lambda i: draw[1 + i])[:count])
