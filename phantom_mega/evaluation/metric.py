"""What every metric is: it takes one generated video with its case, and says one number and why it may be missing.

One metric, one file. A class takes its loaded models in `__init__`; the mathematics is in pure functions on arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Item:
    """One generated video with its case.

    Attributes:
        id: of the case.
        frames: uint8 [F, H, W, 3], RGB, all frames; decoded once for all metrics.
        fps: frames per second.
        prompt: what should happen.
        references: uint8 [h, w, 3] each, RGB.
        labels: class label or phrase of each reference; "" where unknown.
    """

    id: str
    frames: np.ndarray
    fps: float
    prompt: str
    references: tuple[np.ndarray, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Measured:
    """What a metric says of one video.

    Attributes:
        value: higher is better unless the metric says otherwise; 0.0 where nothing was found.
        missing: why it counts as zero ("no face in any frame"); "" where it was measured. Never a reason to
            drop the video.
        detail: further numbers by name, such as one per reference.
    """

    value: float
    missing: str = ""
    detail: dict[str, float] = field(default_factory=dict)


class Metric(Protocol):
    """A metric.

    Attributes:
        name: key in tables and files: "clip_i", "dino_i", "facesim_arc"...
        title: for tables: "CLIP-I".
        higher_is_better: whether a larger value is a better video.
    """

    name: str
    title: str
    higher_is_better: bool

    def measure(self, item: Item) -> Measured:
        """The metric of one video.

        Args:
            item: the video with its case.
        """
        ...
