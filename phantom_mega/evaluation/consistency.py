"""How alike the frames of a video stay, by features of each: VBench's formula of subject and background consistency."""

from __future__ import annotations

import numpy as np

from phantom_mega.evaluation.metric import Measured


def consistency(features: np.ndarray) -> float:
    """Mean over frames 2..F of half the cosine to the first frame and half that to the frame before.

    Negative cosines count as zero, as in VBench (arXiv 2311.17982, vbench/subject_consistency.py). VBench's total
    weighs frames alike, a table of videos weighs videos alike: the same where videos have the same length.

    Args:
        features: [F, width], F at least 2.

    Returns:
        in [0, 1].

    Raises:
        ValueError: there are fewer than two frames, or a feature has no direction.
    """
    if len(features) < 2:
        raise ValueError(f"{len(features)} frames have no consistency; it takes 2")
    features = features.astype(np.float64)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    if not (norms > 0).all() or not np.isfinite(norms).all():
        raise ValueError("a frame's feature has no direction")
    features = features / norms
    to_first = features[1:] @ features[0]
    to_previous = (features[1:] * features[:-1]).sum(1)
    return float(((to_first.clip(0, 1) + to_previous.clip(0, 1)) / 2).mean())


def too_short(count: int, needed: int) -> Measured | None:
    """What a metric over time says of a video of fewer frames than it needs: zero, and why."""
    if count >= needed:
        return None
    return Measured(0.0, f"the video has {count} frame{'s' * (count != 1)}; the metric needs {needed}")
