"""How alike a video and its references look: the mean cosine of their features (CLIP-I, DINO-I; paper 4.2).

F: frames that are looked at, R: references, D: width of a feature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from phantom_mega.evaluation.frames import uniform_indices
from phantom_mega.evaluation.metric import Item, Measured

NO_REFERENCE = "the case has no reference"


def cosines(frames: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Cosine of every frame with every reference, [F, R].

    Args:
        frames: [F, D], of length 1.
        references: [R, D], of length 1.
    """
    return frames @ references.T


def mean_similarity(similarities: np.ndarray, numbers: Sequence[int] | None = None) -> tuple[float, dict[str, float]]:
    """Mean over frames and references, and of each reference; what was not found (NaN) counts as zero.

    Args:
        similarities: [F, R], with F and R at least 1.
        numbers: of the references, in the case; 1 to R if not given.

    Returns:
        (mean, `reference_1`... and where something was not found `found_1`..., the share of frames that count).
    """
    numbers = numbers or range(1, similarities.shape[1] + 1)
    each = np.nan_to_num(similarities, nan=0.0).mean(0)
    found = np.isfinite(similarities).mean(0)
    detail = {f"reference_{number}": float(value) for number, value in zip(numbers, each, strict=True)}
    if found.min() < 1:
        detail |= {f"found_{number}": float(share) for number, share in zip(numbers, found, strict=True)}
    return float(each.mean()), detail


def frames_without(what: str, lacking: Sequence[bool], indices: Sequence[int]) -> str:
    """`what` and the frames that lack it: "'cat' not detected in 2 of 10 frames (0, 9)"; "" where none does.

    Args:
        what: is lacking, as "'cat' not detected" or "no face".
        lacking: of each frame that was looked at.
        indices: numbers of these frames in the video.
    """
    lacking = list(lacking)
    if not any(lacking):
        return ""
    if all(lacking):
        return f"{what} in any of {len(lacking)} frames"
    named = ", ".join(str(index) for index, without in zip(indices, lacking, strict=True) if without)
    return f"{what} in {sum(lacking)} of {len(lacking)} frames ({named})"


class ImageSimilarity:
    """Mean cosine of whole frames and whole references.

    Args:
        name, title: of the metric.
        encode: from pictures, uint8 [h, w, 3] each, to features [n, D] of length 1.
        frames: of a video that are looked at, evenly spaced.
    """

    higher_is_better = True

    def __init__(self, name: str, title: str, encode: Callable[[Sequence[np.ndarray]], np.ndarray], frames: int):
        self.name, self.title, self.encode, self.frames = name, title, encode, frames

    def measure(self, item: Item) -> Measured:
        if not item.references:
            return Measured(0.0, NO_REFERENCE)
        frames = item.frames[uniform_indices(len(item.frames), self.frames)]
        value, detail = mean_similarity(cosines(self.encode(frames), self.encode(item.references)))
        return Measured(value, detail=detail)
