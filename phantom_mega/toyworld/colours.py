"""Colours of a subject whose silhouette is known, by least squares over its upright crops.

Every pixel is a mixture of body, accent and outline in shares that the label map tells, times the light's gain; two
unknown colours are left. K: crops, S: pixels along a side.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np

from phantom_mega.toyworld.identity_network import SIDE
from phantom_mega.toyworld.render import OUTLINE_COLOUR
from phantom_mega.toyworld.scenes import LIGHTS
from phantom_mega.toyworld.shapes import ACCENT, BODY, OUTLINE, label_map
from phantom_mega.toyworld.subjects import Colour

BLUR = 0.6  # pixels, standard deviation: of sampling a video's pixels, and of a VAE
INSIDE = 0.9  # least share of a pixel that the subject covers
RIDGE = 1e-2  # keeps a colour that is hardly seen near grey


@functools.cache
def shares(shape: str, part: str, texture: str, flip: bool) -> np.ndarray:
    """Shares of body, accent and outline in the pixels of an upright crop, float64 [3, S, S]."""
    labels = label_map(shape, part, texture)
    if flip:
        labels = labels[:, ::-1]
    planes = [cv2.resize((labels == label).astype(np.float64), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
              for label in (BODY, ACCENT, OUTLINE)]  # fmt: skip
    return np.stack([cv2.GaussianBlur(plane, (0, 0), BLUR) for plane in planes])


def fit_colours(
    crops: np.ndarray, weights: np.ndarray, look: tuple[str, str, str], flip: bool, light: str
) -> tuple[Colour, Colour]:
    """(body, accent) RGB as in bright light; an accent of which nothing is seen is grey.

    Args:
        crops: float [K, 3, S, S], 0 to 255, upright.
        weights: float [K], how much each counts.
        look: (shape, part, texture).
        flip: whether the subject is mirrored.
        light: of `LIGHTS`.
    """
    planes = shares(*look, flip)
    inside = planes.sum(0) >= INSIDE
    known = planes[:, inside]  # [3, pixels]
    gain = np.asarray(LIGHTS[light])
    pixels = np.einsum("k,kcp->cp", weights / weights.sum(), crops[:, :, inside]) / gain[:, None]
    rest = pixels - np.asarray(OUTLINE_COLOUR)[:, None] * known[2]
    mixture = known[:2]
    gram = mixture @ mixture.T + RIDGE * np.eye(2)
    body, accent = np.linalg.solve(gram, mixture @ rest.T + RIDGE * 128)
    return tuple(np.clip(body, 0, 255).tolist()), tuple(np.clip(accent, 0, 255).tolist())
