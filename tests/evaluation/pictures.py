"""Frames of real clips, and items of them."""

import functools

import numpy as np

from phantom_mega.data.samples import decode_video, source_video
from phantom_mega.evaluation.metric import Item


@functools.cache
def clip(name: str, short_side: int = 96) -> np.ndarray:
    """uint8 [F, H, W, 3] of `bikes` (six shots), `carphone` (one man) or `bigbuckbunny`."""
    return decode_video(source_video(name), short_side)


def item(frames, *references, labels=None, prompt="a man talks", name="case"):
    """An item; references without labels have none."""
    labels = tuple(labels) if labels is not None else ("",) * len(references)
    return Item(name, np.asarray(frames), 24.0, prompt, tuple(references), labels)
