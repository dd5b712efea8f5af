"""Likeness of references and frames by the run's own vision tower: what CLIP-I is to CLIP, without another model.

The trained model reads this very tower's features of the references, so the metric shows whether their content arrives
in the video. It compares iterations of one run; tables need towers that no model was conditioned on (`clip_i`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch.nn.functional as F

from phantom_mega.evaluation.image_similarity import ImageSimilarity

FRAMES = 10


class TowerI(ImageSimilarity):
    """Mean over references and 10 uniform frames of the cosine of mean-pooled patch features.

    Args:
        encode: images uint8 [h, w, 3] to patch features [n, c, D] (`FrozenVisionTower.encode`).
    """

    def __init__(self, encode: Callable):
        def pooled(images: Sequence[np.ndarray]) -> np.ndarray:
            return F.normalize(encode(list(images)).mean(dim=1).double(), dim=-1).cpu().numpy()

        super().__init__("tower_i", "Tower-I", pooled, FRAMES)
