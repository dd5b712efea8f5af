"""Frozen encoders of pictures, by open_clip (CLIP) and transformers (DINO), for metrics that compare features.

n: pictures, D: width of a feature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from phantom_mega.conditioning.sources import check_complete, explain_missing, resolve_source
from phantom_mega.conditioning.vision import load_open_clip
from phantom_mega.errors import SetupError, UserError

FITS = ("crop", "pad", "squash")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CLIP_SOURCE = (
    "its weights: `openai` of open_clip's ViT-B-32-quickgelu, huggingface.co/timm/vit_base_patch32_clip_224.openai"
)
DINO_SOURCE = "its weights: huggingface.co/facebook/dinov2-base"
_LONGEST = 16  # times the shorter side; beyond, a picture would grow to gigabytes before it is cropped


@dataclass
class EncoderSettings:
    """A frozen encoder of pictures, and how it is shown them."""

    model: str = ""
    """Name or folder of the model."""
    pretrained: str = ""
    """For a name of open_clip: a published tag or a checkpoint file."""
    fit: str = "crop"
    """How a picture becomes the model's square: `crop` resizes the shorter side and cuts out the centre, as CLIP's
    and DINO's authors do; `pad` keeps all of it on white; `squash` changes its aspect."""
    dtype: str = "float32"
    """Of the model's weights: float32, bfloat16 or float16."""
    batch: int = 32
    """Pictures at once."""
    frames: int = 10
    """Frames of a video, evenly spaced, the first and the last among them (paper 4.2)."""

    def check(self, metric: str) -> None:
        """Raise UserError on a value out of range.

        Args:
            metric: whose settings these are, for messages.
        """
        check_choice(metric, "fit", self.fit, FITS)
        check_choice(metric, "dtype", self.dtype, tuple(DTYPES))
        check_counts(metric, batch=self.batch, frames=self.frames)


def check_choice(metric: str, name: str, value: str, known: Sequence[str]) -> None:
    """Raise UserError if a setting is none of the known ones."""
    if value not in known:
        raise UserError(f"{metric}.{name}={value!r}; use {', '.join(known[:-1])} or {known[-1]}")


def check_counts(metric: str, **counts: int) -> None:
    """Raise UserError if one of the settings is below 1."""
    for name, value in counts.items():
        if value < 1:
            raise UserError(f"{metric}.{name}={value}; it must be at least 1")


def to_square(image: np.ndarray, side: int, fit: str, resize: int | None = None) -> np.ndarray:
    """A picture as a model's square, by PIL's antialiased bicubic filter, as torchvision's transforms of CLIP do.

    Args:
        image: uint8 [h, w, 3].
        side: pixels of the square.
        fit: one of `FITS`.
        resize: of the shorter side before the centre is cut out, for `crop`; `side` if not given.

    Returns:
        uint8 [side, side, 3].
    """
    picture = Image.fromarray(image)
    if fit == "pad":
        picture = ImageOps.pad(picture, (side, side), Image.Resampling.BICUBIC, "white")
    elif fit == "squash":
        picture = picture.resize((side, side), Image.Resampling.BICUBIC)
    else:
        most = _LONGEST * min(picture.size)
        if max(picture.size) > most:  # only the centre is kept anyway
            picture = transforms.center_crop(picture, [min(picture.height, most), min(picture.width, most)])
        picture = transforms.resize(picture, [resize or side], InterpolationMode.BICUBIC)
        picture = transforms.center_crop(picture, [side, side])
    return np.asarray(picture)


class ImageEncoder:
    """Features of pictures.

    Args:
        module: from normalized pixels [n, 3, side, side] to features [n, D].
        side: pixels of the model's square.
        mean, std: of its pixels, three each.
        settings: with `fit`, `dtype` and `batch`.
        device: where the module is.
        resize: see `to_square`.
    """

    def __init__(
        self,
        module: Callable[[torch.Tensor], torch.Tensor],
        side: int,
        mean: Sequence[float],
        std: Sequence[float],
        settings: EncoderSettings,
        device: torch.device | str,
        resize: int | None = None,
    ):
        self.module, self.side, self.resize = module, side, resize
        self.fit, self.batch = settings.fit, settings.batch
        self.device, self.dtype = device, DTYPES[settings.dtype]
        self.mean, self.std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (mean, std))

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Features, float64 [n, D] of length 1, of n >= 1 pictures, uint8 [h, w, 3] each.

        Raises:
            SetupError: a feature has no direction.
        """
        found = []
        for at in range(0, len(images), self.batch):
            squares = [to_square(image, self.side, self.fit, self.resize) for image in images[at : at + self.batch]]
            pixels = torch.from_numpy(np.stack(squares)).to(self.device).permute(0, 3, 1, 2).float() / 255
            found.append(self.module(((pixels - self.mean) / self.std).to(self.dtype)).double().cpu().numpy())
        return unit_rows(np.concatenate(found))


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Features [n, D] as float64 of length 1.

    Raises:
        SetupError: one has no direction: it is zero, or not a number.
    """
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise SetupError("an encoder gave a feature without a direction; try dtype float32")
    return features.astype(np.float64) / lengths


def open_clip_model(settings: EncoderSettings, metric: str, device: torch.device | str) -> tuple[str, Any]:
    """A CLIP of open_clip.

    Args:
        settings: with `model`, `pretrained` and `dtype`.
        metric: whose settings these are, for messages.
        device: where it computes.

    Returns:
        (name that open_clip knows it by, model).

    Raises:
        UserError: it cannot be loaded, or its weights were trained with another activation.
    """
    options = f"{metric}.model", f"{metric}.pretrained"
    if not settings.model:
        raise UserError(f"{options[0]} is not set; give a name of open_clip or a folder ({CLIP_SOURCE})")
    what = f"{options[0]} (with {options[1]}={settings.pretrained!r})"
    try:
        name, model = load_open_clip(settings.model, settings.pretrained or None, what, *options)
    except UserError as error:
        raise UserError(f"{error}; {CLIP_SOURCE}") from None
    return name, model.to(device, DTYPES[settings.dtype]).eval().requires_grad_(False)


def clip_encoder(model: Any, settings: EncoderSettings, device: torch.device | str) -> ImageEncoder:
    """The image features of a CLIP that `open_clip_model` gave."""
    visual = model.visual
    side = visual.image_size if isinstance(visual.image_size, int) else visual.image_size[0]
    return ImageEncoder(model.encode_image, side, visual.image_mean, visual.image_std, settings, device)


def load_clip(settings: EncoderSettings, metric: str, device: torch.device | str) -> ImageEncoder:
    """Image features of a CLIP; see `open_clip_model`."""
    return clip_encoder(open_clip_model(settings, metric, device)[1], settings, device)


def load_dino(settings: EncoderSettings, metric: str, device: torch.device | str) -> ImageEncoder:
    """Class tokens of a DINO, DINOv2 or another vision transformer of transformers.

    The shorter side is resized as the model's image processor says (DINOv2: 256 pixels, of which 224 are cut out).

    Args:
        settings: with `model`.
        metric: whose settings these are, for messages.
        device: where it computes.

    Raises:
        UserError: it cannot be loaded, misses weights, or is no vision transformer with a class token.
    """
    from transformers import AutoImageProcessor, AutoModel

    what, name = f"{metric}.model", settings.model
    if not name:
        raise UserError(f"{what} is not set; give a name of the hub or a folder ({DINO_SOURCE})")
    try:
        source = resolve_source(name)
        processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
        model, loading = AutoModel.from_pretrained(source, trust_remote_code=False, output_loading_info=True)
    except Exception as error:  # transformers raises nearly anything on what is no such model
        raise UserError(f"{explain_missing(what, name, error)}; {DINO_SOURCE}") from None
    # The first DINO is published without a pooler, which transformers would add at random; it is not used.
    check_complete(what, name, (key for key in loading["missing_keys"] if not key.startswith("pooler.")))
    size, crop = dict(processor.size), dict(getattr(processor, "crop_size", None) or {})
    shorter = size.get("shortest_edge") or size.get("height")
    side = (crop.get("height") if getattr(processor, "do_center_crop", False) else None) or shorter
    if not side or not processor.image_mean:
        raise UserError(f"{what}={name!r} has an image processor without a size; use a vision model")
    model = model.to(device, DTYPES[settings.dtype]).eval().requires_grad_(False)

    def class_token(pixels: torch.Tensor) -> torch.Tensor:
        return model(pixel_values=pixels).last_hidden_state[:, 0]

    encoder = ImageEncoder(
        class_token, side, processor.image_mean, processor.image_std, settings, device, max(shorter, side)
    )
    try:
        encoder([np.zeros((side, side, 3), np.uint8)])
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{what}={name!r} is no vision transformer with a class token ({reason})") from None
    return encoder
