"""The frozen vision tower (SigLIP or CLIP, by open_clip): patch features of reference images.

n: images, c: patch tokens of an image, before pooling and projection, without class tokens.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import open_clip
import torch
import torch.nn.functional as F

from phantom_mega.conditioning.sources import explain_missing, resolve_source
from phantom_mega.errors import UserError
from phantom_mega.hf.vision_tower import PhantomVisionTower

if TYPE_CHECKING:  # an export carries this module without the run's configuration
    from phantom_mega.config import ConditioningConfig

# The tower of CPU runs: random, but the same everywhere, so that its features are stable "random convolutions".
TINY = dict(
    vision_cfg=dict(image_size=64, patch_size=16, width=64, layers=2, head_width=16, mlp_ratio=2.0),
    embed_dim=64,
    image_size=(64, 64),
    image_mean=open_clip.OPENAI_DATASET_MEAN,
    image_std=open_clip.OPENAI_DATASET_STD,
)
TINY_SEED = 20250215
BATCH_IMAGES = 64
# Pixels of a padded image. A line of pixels that is padded to a square would take gigabytes; larger ones are scaled
# down before. A tower's input is a few hundred pixels wide, so nothing is lost.
MAX_CANVAS = 1 << 24


class FrozenVisionTower:
    """A vision tower in eval mode without gradients.

    Args:
        model: the tower.
        name: as the recipe names it, for messages.
        device: where it computes, if that is not where its weights are (diffusers' offloading).

    Attributes:
        tokens: c.
        dim: width of the features.
        calls: images encoded so far.

    Raises:
        UserError: the tower has no patch tokens.
    """

    def __init__(
        self,
        model: PhantomVisionTower,
        name: str = "the vision tower",
        device: torch.device | None = None,
    ):
        self.model = model.eval().requires_grad_(False)
        config = model.config
        self.size = tuple(config.image_size)
        self.device, self.dtype = device or model.device, model.dtype
        self.mean, self.std = (
            torch.tensor(values, device=self.device).view(3, 1, 1) for values in (config.image_mean, config.image_std)
        )
        try:
            probe = self._features(torch.zeros(1, 3, *self.size, device=self.device))
        except (AssertionError, AttributeError, NotImplementedError) as error:
            raise UserError(f"{name} has no patch tokens ({error}); use a vision transformer (ViT) tower") from None
        self.tokens, self.dim = probe.shape[1:]
        self.calls = 0

    @torch.no_grad()
    def _features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Patch tokens [n, c, dim], float32, of normalized pixels."""
        return self.model(pixels.to(self.dtype)).float()

    def preprocess(self, image: np.ndarray) -> torch.Tensor:
        """uint8 [height, width, 3] to [3, *size]: padded with white to the tower's aspect, resized, normalized.

        Padding instead of a centre crop keeps the whole subject in sight, whatever its shape is.
        """
        x = torch.tensor(image).permute(2, 0, 1)
        canvas = self._canvas(*x.shape[1:])
        if canvas[0] * canvas[1] > MAX_CANVAS:
            scale = (MAX_CANVAS / (canvas[0] * canvas[1])) ** 0.5
            smaller = [max(1, int(side * scale)) for side in x.shape[1:]]
            x = F.interpolate(x[None], smaller, mode="bilinear", antialias=True, align_corners=False)[0]
            canvas = self._canvas(*smaller)
        x = x.to(self.device).float() / 255
        height, width = x.shape[1:]
        top, left = (canvas[0] - height) // 2, (canvas[1] - width) // 2
        x = F.pad(x, (left, canvas[1] - width - left, top, canvas[0] - height - top), value=1.0)
        x = F.interpolate(x[None], self.size, mode="bicubic", antialias=True, align_corners=False)[0]
        return (x.clamp(0, 1) - self.mean) / self.std

    def _canvas(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the smallest picture of the tower's aspect that holds the image."""
        return (max(height, round(width * self.size[0] / self.size[1])),
                max(width, round(height * self.size[1] / self.size[0])))  # fmt: skip

    def encode(self, images: list[np.ndarray]) -> torch.Tensor:
        """Patch features [n, c, dim], float32, of n uint8 images [height, width, 3]."""
        self.calls += len(images)
        features = [torch.zeros(0, self.tokens, self.dim, device=self.device)]
        for at in range(0, len(images), BATCH_IMAGES):
            pixels = torch.stack([self.preprocess(image) for image in images[at : at + BATCH_IMAGES]])
            features.append(self._features(pixels))
        return torch.cat(features)


def load_vision_tower(
    config: ConditioningConfig, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> FrozenVisionTower:
    """Load the tower that the recipe names: `tiny`, an open_clip model name, `hf-hub:NAME`, or a directory.

    A directory is one that open_clip's `push_to_hf_hub` writes (`open_clip_config.json` and weights); a model name
    needs `vision_pretrained`, a published tag or a checkpoint file.

    Raises:
        UserError: open_clip does not know it, cannot load its weights, would leave them random, or would give them an
            activation that they were not trained with.
    """
    if config.vision_encoder == "tiny":
        return load_tiny_tower(device)
    options = "conditioning.vision_encoder", "conditioning.vision_pretrained"
    name, model = load_open_clip(config.vision_encoder, config.vision_pretrained, "the vision tower", *options)
    visual = model.visual
    size = visual.image_size if isinstance(visual.image_size, (tuple, list)) else (visual.image_size,) * 2
    architecture = open_clip.get_model_config(name)
    with torch.device("meta"):  # the weights are here already
        tower = PhantomVisionTower(
            architecture["vision_cfg"], architecture["embed_dim"], architecture.get("quick_gelu", False),
            tuple(size), tuple(visual.image_mean), tuple(visual.image_std),
        )  # fmt: skip
    tower.tower = visual
    return FrozenVisionTower(tower.to(device, dtype), config.vision_encoder)


def load_open_clip(
    source: str, pretrained: str | None, what: str, source_option: str, pretrained_option: str
) -> tuple[str, torch.nn.Module]:
    """Load a model by open_clip, all of it; no checkpoint can run code.

    Args:
        source: a name of open_clip, `hf-hub:NAME`, or a folder.
        pretrained: published tag or checkpoint file, for a name.
        what: the model is, for messages.
        source_option, pretrained_option: where the user has set them.

    Returns:
        (name that open_clip knows its architecture by, model).

    Raises:
        UserError: open_clip does not know it, cannot load its weights, would leave them random, or would give them an
            activation that they were not trained with.
    """
    name = resolve_source(source)
    if Path(name).is_dir():
        name = f"local-dir:{name}"
    preprocess = None
    if not name.startswith(("local-dir:", "hf-hub:")):
        preprocess = _check_named_model(name, pretrained, source_option, pretrained_option)
    try:
        model = open_clip.create_model(
            name, pretrained=pretrained or None, require_pretrained=True, force_preprocess_cfg=preprocess
        )
    except Exception as error:  # open_clip raises nearly anything on files that are not what their names say
        raise explain_missing(what, source, error) from None
    return name, model


def load_tiny_tower(device: torch.device | str = "cpu") -> FrozenVisionTower:
    """The tower `tiny`, in float32."""
    return FrozenVisionTower(_tiny_tower().to(device), "tiny")


def _tiny_tower() -> PhantomVisionTower:
    """The same random weights in every process, without touching any generator that others draw from."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(TINY_SEED)
        return PhantomVisionTower(**TINY)


def _check_named_model(
    name: str,
    pretrained: str | None,
    source_option: str = "conditioning.vision_encoder",
    pretrained_option: str = "conditioning.vision_pretrained",
) -> dict | None:
    """Refuse a name that open_clip would leave with random or unfit weights; the normalization of a file's pixels.

    open_clip knows the normalization of published tags only. Where all tags of an architecture share one (SigLIP does
    not use CLIP's), a file of that architecture gets it too.
    """
    known = open_clip.list_models()
    if name.replace("/", "-") not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"{source_option}={name!r} is no open_clip model and no directory{hint}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not pretrained:
        raise UserError(
            f"{pretrained_option} is not set, {name} would have random weights; give a checkpoint file"
            + (f" or one of {', '.join(tags)}" if tags else "")
        )
    if pretrained.lower() in tags or not os.path.isfile(pretrained):
        _check_activation(name, pretrained, source_option)
        return None
    published = [open_clip.get_pretrained_cfg(name, tag) for tag in tags]
    shared = {(tuple(entry.get("mean", ())), tuple(entry.get("std", ()))) for entry in published}
    mean, std = shared.pop() if len(shared) == 1 else ((), ())
    return {"mean": mean, "std": std} if mean and std else None


def _check_activation(name: str, tag: str, source_option: str) -> None:
    """Refuse weights that were trained with the other GELU: open_clip only warns, and features are a little wrong."""
    name = name.replace("/", "-")  # create_model takes ViT-B/32 too, these two do not
    trained, built = open_clip.get_pretrained_cfg(name, tag), open_clip.get_model_config(name)
    if trained and bool(trained.get("quick_gelu")) != bool(built.get("quick_gelu")):
        right = f"{name}-quickgelu" if trained.get("quick_gelu") else name.removesuffix("-quickgelu")
        raise UserError(
            f"{source_option}={name!r} has another activation than the weights {tag!r} were trained with; use {right}"
        )
