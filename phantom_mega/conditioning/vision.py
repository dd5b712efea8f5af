"""The frozen vision tower (SigLIP or CLIP, by open_clip): patch features of reference images.

c: patch tokens of an image, before pooling and projection, without class tokens.
"""

from __future__ import annotations

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer

from phantom_mega.conditioning.sources import explain_missing
from phantom_mega.config import ConditioningConfig

# The tower of CPU runs: random, but the same everywhere, so that its features are stable "random convolutions".
TINY = dict(image_size=64, patch_size=16, width=64, layers=2, heads=4, mlp_ratio=2.0, output_dim=64)
TINY_SEED = 20250215


class FrozenVisionTower:
    """A vision tower in eval mode without gradients.

    Args:
        tower: open_clip's vision transformer, or its wrapper around a timm trunk.
        size: side of its square input, pixels.
        mean, std: its normalization, of values in [0, 1].

    Attributes:
        tokens: c.
        dim: width of the features.
        calls: images encoded so far.
    """

    def __init__(self, tower: torch.nn.Module, size: int, mean: tuple[float, ...], std: tuple[float, ...]):
        self.tower = tower.eval().requires_grad_(False)
        self.size = size
        parameter = next(tower.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.mean, self.std = (torch.tensor(values, device=self.device).view(3, 1, 1) for values in (mean, std))
        probe = self._features(torch.zeros(1, 3, size, size, device=self.device, dtype=self.dtype))
        self.tokens, self.dim = probe.shape[1:]
        self.calls = 0

    def _features(self, pixels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            out = self.tower.forward_intermediates(
                pixels, indices=1, normalize_intermediates=True, intermediates_only=True, output_fmt="NLC"
            )
        return out["image_intermediates"][-1]

    def preprocess(self, image: np.ndarray | torch.Tensor) -> torch.Tensor:
        """uint8 [height, width, 3] to [3, size, size]: padded with white to a square, resized, normalized."""
        x = torch.as_tensor(image).to(self.device).permute(2, 0, 1).float() / 255
        height, width = x.shape[1:]
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        x = F.pad(x, (left, side - width - left, top, side - height - top), value=1.0)
        x = F.interpolate(x[None], (self.size, self.size), mode="bicubic", antialias=True, align_corners=False)[0]
        return (x.clamp(0, 1) - self.mean) / self.std

    def encode(self, images: list[np.ndarray | torch.Tensor]) -> torch.Tensor:
        """Patch features [n, c, dim], float32, of n uint8 images [height, width, 3]."""
        if not images:
            return torch.zeros(0, self.tokens, self.dim, device=self.device)
        self.calls += len(images)
        return self._features(torch.stack([self.preprocess(image) for image in images]).to(self.dtype)).float()


def load_vision_tower(
    config: ConditioningConfig, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> FrozenVisionTower:
    """Load the tower that the recipe names: `tiny`, an open_clip model name, `hf-hub:NAME` or `local-dir:PATH`.

    Raises:
        UserError: open_clip does not know it or cannot load its weights.
    """
    if config.vision_encoder == "tiny":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(TINY_SEED)
            tower = VisionTransformer(**TINY)
        mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        return FrozenVisionTower(tower.to(device), TINY["image_size"], mean, std)
    try:
        model = open_clip.create_model(config.vision_encoder, pretrained=config.vision_pretrained)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise explain_missing("the vision tower", config.vision_encoder, error) from None
    visual = model.visual
    size = visual.image_size[0] if isinstance(visual.image_size, (tuple, list)) else visual.image_size
    mean = getattr(visual, "image_mean", None) or open_clip.OPENAI_DATASET_MEAN
    std = getattr(visual, "image_std", None) or open_clip.OPENAI_DATASET_STD
    return FrozenVisionTower(visual.to(device, dtype), size, mean, std)
