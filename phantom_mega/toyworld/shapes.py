"""Silhouettes and textures of subjects as label maps: at each point nothing, body, accent or outline.

Local coordinates: x to the right, y down, the body's height is 1, its centre the origin. Parts reach beyond it.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np

EXTENT = 0.95  # a label map covers [-EXTENT, EXTENT] in x and y
PER_UNIT = 96  # labels along a body's height
SIDE = round(2 * EXTENT * PER_UNIT)
NOTHING, BODY, ACCENT, OUTLINE = range(4)
OUTLINE_WIDTH = 0.05


@functools.cache
def label_map(shape: str, part: str, texture: str) -> np.ndarray:
    """uint8 [SIDE, SIDE] of `NOTHING`, `BODY`, `ACCENT` and `OUTLINE`.

    The dark outline runs around the body and around the part, so that both are seen on any background.
    """
    axis = (np.arange(SIDE) + 0.5) / PER_UNIT - EXTENT
    x, y = np.meshgrid(axis, axis)
    body, part_area = _BODIES[shape](x, y), _PARTS[part](x, y)
    width = round(OUTLINE_WIDTH * PER_UNIT)
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    labels = np.zeros((SIDE, SIDE), np.uint8)
    # Behind the body: what a part hides of itself needs no drawing by hand.
    for area, accent in ((part_area, part_area), (body, body & _TEXTURES[texture](x, y))):
        labels[cv2.dilate(area.astype(np.uint8), disk) > 0] = OUTLINE
        labels[area] = BODY
        labels[accent] = ACCENT
    labels.flags.writeable = False
    return labels


def turns_visibly(shape: str, part: str, texture: str) -> bool:
    """Whether a turn in the plane changes the picture; a plain disk looks the same at any angle."""
    return not (shape == "circle" and part == "none" and texture in ("plain", "ring"))


def _disk(x: np.ndarray, y: np.ndarray, cx: float, cy: float, radius: float) -> np.ndarray:
    return (x - cx) ** 2 + (y - cy) ** 2 <= radius**2


def _polygon(x: np.ndarray, y: np.ndarray, corners: list[tuple[float, float]]) -> np.ndarray:
    """Points inside a polygon, by the even-odd rule."""
    inside = np.zeros(x.shape, bool)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1]):
        if y0 != y1:
            inside ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return inside


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    radii = np.where(np.arange(10) % 2, 0.26, 0.6)
    corners = list(zip((radii * np.cos(angles)).tolist(), (radii * np.sin(angles) + 0.05).tolist()))
    return _polygon(x, y, corners)


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    lobes = _disk(x, y, -0.26, -0.2, 0.3) | _disk(x, y, 0.26, -0.2, 0.3)
    return lobes | _polygon(x, y, [(-0.51, -0.04), (0.0, -0.3), (0.51, -0.04), (0.0, 0.54)])


_BODIES = {
    "circle": lambda x, y: _disk(x, y, 0, 0, 0.5),
    "square": lambda x, y: np.maximum(abs(x), abs(y)) <= 0.45,
    "triangle": lambda x, y: _polygon(x, y, [(0, -0.52), (0.57, 0.46), (-0.57, 0.46)]),
    "star": _star,
    "heart": _heart,
    # Narrower than high: a square on its corner would be a turned square.
    "diamond": lambda x, y: abs(x) / 0.38 + abs(y) / 0.58 <= 1,
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) <= 0.19) & (np.maximum(abs(x), abs(y)) <= 0.5),
    "crescent": lambda x, y: _disk(x, y, 0.06, 0, 0.52) & ~_disk(x, y, 0.36, -0.06, 0.36),
}
_PARTS = {
    "none": lambda x, y: np.zeros(x.shape, bool),
    "ears": lambda x, y: _disk(x, y, -0.36, -0.5, 0.2) | _disk(x, y, 0.36, -0.5, 0.2),
    "horns": lambda x, y: (
        _polygon(x, y, [(-0.42, -0.15), (-0.06, -0.3), (-0.46, -0.86)])
        | _polygon(x, y, [(0.42, -0.15), (0.06, -0.3), (0.46, -0.86)])
    ),
    "hat": lambda x, y: (
        ((abs(x) <= 0.24) & (y >= -0.84) & (y <= -0.3)) | ((abs(x) <= 0.46) & (abs(y + 0.46) <= 0.075))
    ),
    "tail": lambda x, y: (
        _polygon(x, y, [(-0.2, 0.1), (-0.2, 0.4), (-0.62, 0.26), (-0.58, 0.05)]) | _disk(x, y, -0.62, 0.08, 0.18)
    ),
    "legs": lambda x, y: (abs(abs(x) - 0.25) <= 0.1) & (y >= 0) & (y <= 0.8),
}
_TEXTURES = {
    "plain": lambda x, y: np.zeros(x.shape, bool),
    "stripes": lambda x, y: (x / 0.4 + 0.18) % 1 < 0.36,
    "dots": lambda x, y: (
        ((x + 0.21) % 0.42 - 0.21) ** 2 + ((y + 0.21) % 0.42 - 0.21) ** 2 <= 0.13**2
    ),
    "ring": lambda x, y: abs(np.hypot(x, y) - 0.265) <= 0.065,
    "belt": lambda x, y: abs(y - 0.14) <= 0.14,
}  # fmt: skip
