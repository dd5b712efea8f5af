"""Still images: bytes to pixels, and pixels to the sizes that the model takes. References of training and generation
go through the same functions.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from phantom_mega.errors import UserError
from phantom_mega.geometry import contain_size, cover_size

# Larger pictures are refused before they are unpacked: an 8k x 8k frame has 67 million pixels.
MAX_PIXELS = 1 << 27
# By content PIL would also take formats that start programs.
_IMAGES = ("JPEG", "PNG")


def open_image(data: bytes, mask: bytes | None = None, outside: str = "white") -> np.ndarray:
    """JPEG or PNG bytes to uint8 [h, w, 3]: turned by EXIF, transparency white, what lies outside the mask `outside`.

    Raises:
        ValueError: the bytes are no such image, or one that would unpack to hundreds of megabytes.
    """
    try:
        image = upright_rgb(open_header(data))
        if mask is not None:
            inside = open_header(mask).convert("L").resize(image.size)
            image = Image.composite(image, Image.new("RGB", image.size, outside), inside)
    except Exception as error:  # PIL's parsers raise nearly anything on damaged files
        raise ValueError(f"the image cannot be read ({error})") from None
    return np.asarray(image)


def open_header(data: bytes) -> Image.Image:
    """A JPEG or PNG whose pixels are not unpacked yet.

    Raises:
        ValueError: it has more than `MAX_PIXELS`.
        Exception: nearly any, for bytes that are no such image.
    """
    with warnings.catch_warnings():
        # PIL warns at a limit of its own; ours is checked here, not by a filter that threads would share.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(io.BytesIO(data), formats=_IMAGES)
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"it has {image.width}x{image.height} pixels; {MAX_PIXELS} are the most")
    return image


def upright_rgb(image: Image.Image) -> Image.Image:
    """An image as RGB: turned by EXIF, its transparency white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits: PIL would clip instead of scale
        image = Image.fromarray((np.asarray(image, dtype=np.float32) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def open_reference(image: Image.Image | np.ndarray | str | Path, number: int) -> np.ndarray:
    """A reference image of any kind as uint8 [h, w, 3].

    Args:
        image: a PIL image, uint8 [h, w, 3] or [h, w, 4], or the path of a JPEG or PNG.
        number: counted from 1, for messages.

    Raises:
        UserError: it cannot be read; names it.
    """
    try:
        if isinstance(image, (str, Path)):
            return open_image(Path(image).read_bytes())
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (3, 4) or not image.size:
                raise ValueError(f"it is {image.dtype} {list(image.shape)}, not uint8 [h, w, 3]")
            image = Image.fromarray(image)
        if not isinstance(image, Image.Image):
            raise ValueError(f"it is a {type(image).__name__}; give a PIL image, a uint8 array or a path")
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"it has {image.width}x{image.height} pixels; {MAX_PIXELS} are the most")
        return np.asarray(upright_rgb(image))
    except (OSError, ValueError) as error:
        name = f" ({image})" if isinstance(image, (str, Path)) else ""
        raise UserError(f"reference image {number}{name} cannot be used: {error}") from None


def image_tensor(image: np.ndarray) -> torch.Tensor:
    """uint8 [h, w, 3] to [3, h, w]."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1)


def to_unit(frames: torch.Tensor) -> torch.Tensor:
    """uint8 in [0, 255] to float32 in [-1, 1]."""
    return frames.float() / 127.5 - 1


def _resize(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if tuple(image.shape[1:]) == size:
        return image
    return F.interpolate(image[None], size, mode="bilinear", antialias=True, align_corners=False)[0]


def cover_crop(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Image uint8 [3, h, w] scaled (antialiased bilinear) to cover height x width and cropped at the centre.

    Raises:
        ValueError: it is so narrow that it would grow beyond `MAX_PIXELS`.
    """
    image = _resize(image, bounded_cover_size(tuple(image.shape[1:]), (height, width)))
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    return image[:, top : top + height, left : left + width]


def bounded_cover_size(source: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """`cover_size`; one line of pixels that is scaled to cover a frame would take gigabytes.

    Raises:
        ValueError: it is larger than `MAX_PIXELS`.
    """
    size = cover_size(source, target)
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"{source[1]}x{source[0]} pixels are too narrow to be cut to {target[1]}x{target[0]}")
    return size


def pad_white(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Image uint8 [3, h, w] scaled into height x width and centred on white (paper 3.2)."""
    inside = _resize(image, contain_size(tuple(image.shape[1:]), (height, width)))
    top, left = (height - inside.shape[1]) // 2, (width - inside.shape[2]) // 2
    out = image.new_full((3, height, width), 255)
    out[:, top : top + inside.shape[1], left : left + inside.shape[2]] = inside
    return out
