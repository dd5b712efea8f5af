"""Likeness of references and frames by the run's own vision tower: what CLIP-I is to CLIP, without another model.

The trained model reads this very tower's features of the references, so the metric shows whether their content arrives
in the video. It compares iterations of one run; tables need towers that no model was conditioned on (`clip_i`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from phantom_mega.evaluation.frames import uniform
from phantom_mega.evaluation.metric import Item, Measured

FRAMES = 10


def mean_cosine(references: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Cosine of each reference to every frame, averaged over the frames.

    Args:
        references: float [n, D].
        frames: float [F, D].

    Returns:
        [n], in [-1, 1].
    """
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (references, frames)]
    return (unit[0] @ unit[1].T).mean(axis=1)


class TowerI:
    """Mean over references and 10 uniform frames of the cosine of mean-pooled patch features.

    Args:
        encode: images uint8 [h, w, 3] to patch features [n, c, D] (`FrozenVisionTower.encode`).
    """

    name, title, higher_is_better = "tower_i", "Tower-I", True

    def __init__(self, encode: Callable):
        self._encode = encode

    def _pooled(self, images: list[np.ndarray]) -> np.ndarray:
        return self._encode(images).mean(dim=1).double().cpu().numpy()

    def measure(self, item: Item) -> Measured:
        """The likeness, by reference in `detail`."""
        if not item.references:
            return Measured(0.0, "the case has no reference")
        frames = self._pooled(list(uniform(item.frames, FRAMES)))
        likeness = mean_cosine(self._pooled(list(item.references)), frames)
        return Measured(float(likeness.mean()), detail={f"reference {i}": float(x) for i, x in enumerate(likeness, 1)})
