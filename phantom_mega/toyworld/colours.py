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

BLURS = (0.6, 1.0, 1.4, 1.8)  # pixels, standard deviations: sampling blurs, and so do VAEs and models
INSIDE = 0.9  # least share of a pixel that the subject covers
LEAST_PIXELS = 16  # that a blur must leave inside
RIDGE = 1e-2  # keeps a colour that is hardly seen near grey


@functools.cache
def shares(shape: str, part: str, texture: str, flip: bool, blur: float = BLURS[0]) -> np.ndarray:
    """Shares of body, accent and outline in the pixels of an upright crop, float64 [3, S, S]."""
    labels = label_map(shape, part, texture)
    if flip:
        labels = labels[:, ::-1]
    planes = [cv2.resize((labels == label).astype(np.float64), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
              for label in (BODY, ACCENT, OUTLINE)]  # fmt: skip
    return np.stack([cv2.GaussianBlur(plane, (0, 0), blur) for plane in planes])


def fit_colours(
    crops: np.ndarray, weights: np.ndarray, look: tuple[str, str, str], flip: bool, light: str
) -> tuple[Colour, Colour]:
    """(body, accent) RGB as in bright light, by the blur that explains the crops best.

    An accent of which nothing is seen is grey.

    Args:
        crops: float [K, 3, S, S], 0 to 255, upright.
        weights: float [K], how much each counts.
        look: (shape, part, texture).
        flip: whether the subject is mirrored.
        light: of `LIGHTS`.
    """
    mean = np.einsum("k,kcyx->cyx", weights / weights.sum(), crops) / np.asarray(LIGHTS[light])[:, None, None]
    best, least = None, np.inf
    for blur in BLURS:
        planes = shares(*look, flip, blur)
        inside = planes.sum(0) >= INSIDE
        if best is not None and inside.sum() < LEAST_PIXELS:
            break
        colours, error = _solve(mean[:, inside], planes[:, inside])
        if error < least:
            best, least = colours, error
    body, accent = np.clip(best, 0, 255).tolist()
    return tuple(body), tuple(accent)


def _solve(pixels: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, float]:
    """(colours [2, 3], mean squared error) of pixels [3, n] that are mixed in shares [3, n]."""
    rest = pixels - np.asarray(OUTLINE_COLOUR)[:, None] * known[2]
    mixture = known[:2]
    colours = np.linalg.solve(mixture @ mixture.T + RIDGE * np.eye(2), mixture @ rest.T + RIDGE * 128)
    return colours, float(np.square(rest - colours.T @ mixture).mean()) if rest.size else np.inf
