"""Videos with their cases, for tests of metrics."""

import numpy as np

from phantom_mega.evaluation.metric import Item


def item(frames, fps=8.0, references=(), labels=None):
    """A case of some frames, a list or uint8 [F, H, W, 3]."""
    labels = ("",) * len(references) if labels is None else labels
    return Item("case", np.asarray(frames), fps, "a prompt", tuple(references), tuple(labels))


def texture(height=144, width=176, seed=0):
    """A picture of soft coloured blobs, uint8 [height, width, 3], that any feature finds its way on."""
    import cv2

    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), 2)
    return cv2.normalize(soft, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def still(picture, count=9):
    """uint8 [count, H, W, 3] of one picture."""
    return np.repeat(picture[None], count, 0)


def drift(picture, pixels, count=9):
    """A picture that moves to the right by some pixels a frame, what leaves comes in again."""
    return np.stack([np.roll(picture, pixels * i, 1) for i in range(count)])
