"""Pictures of subjects, cut out of frames: boxes to pixels, and images and masks as shards hold them."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from phantom_mega.data.encode import encode_image

LONGEST_SIDE = 512  # of a crop's image


def pixels_of(box: Sequence[float], width: int, height: int) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 in whole pixels of a box in fractions of a picture; at least one pixel, all inside."""
    x0, y0, x1, y1 = (round(side * (width, height)[i % 2]) for i, side in enumerate(box))
    x0, y0 = min(x0, width - 1), min(y0, height - 1)
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


def stored_size(width: int, height: int, longest: int = LONGEST_SIDE) -> tuple[int, int]:
    """(width, height) of the same aspect with the longer side at most `longest` pixels; never enlarged."""
    scale = min(1.0, longest / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def image_of(image: Image.Image, longest: int = LONGEST_SIDE) -> bytes:
    """A picture as a JPEG of `stored_size`."""
    return encode_image(image.resize(stored_size(*image.size, longest), Image.Resampling.LANCZOS))


def mask_of(part: np.ndarray, longest: int = LONGEST_SIDE) -> bytes:
    """A part of a mask, bool [H, W], as a grey PNG of `stored_size`, as the picture of the same part."""
    image, buffer = Image.fromarray(part.astype(np.uint8) * 255), io.BytesIO()
    image.resize(stored_size(*image.size, longest), Image.Resampling.BILINEAR).save(buffer, "PNG")
    return buffer.getvalue()
