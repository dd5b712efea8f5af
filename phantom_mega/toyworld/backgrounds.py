"""Backgrounds: painted once as tiles that repeat sideways, then looked up at any point of the world.

World coordinates: x to the right, y down, a frame that is not moved or zoomed covers y in [0, 1].
"""

from __future__ import annotations

import functools

import numpy as np

PER_UNIT = 128  # tile pixels of a frame's height
PERIOD = 4  # frame heights after which a tile repeats sideways
TOP, BOTTOM = -0.5, 1.5  # of a tile; beyond it the last line goes on
_SEED = 20250216


@functools.cache
def tile(name: str) -> np.ndarray:
    """uint8 [2 * PER_UNIT, PERIOD * PER_UNIT, 3] of a background."""
    x = (np.arange(PERIOD * PER_UNIT) + 0.5) / PER_UNIT
    y = (np.arange(round((BOTTOM - TOP) * PER_UNIT)) + 0.5) / PER_UNIT + TOP
    painted = np.broadcast_to(np.float64(0), (len(y), len(x), 3)).copy()
    _PAINTERS[name](painted, *np.meshgrid(x, y))
    painted = painted.round().astype(np.uint8)
    painted.flags.writeable = False
    return painted


def look_up(name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """uint8 [..., 3], the background at world points; x and y broadcast to the shape."""
    painted = tile(name)
    column = np.floor(x * PER_UNIT).astype(np.intp) % painted.shape[1]
    row = np.clip(np.floor((y - TOP) * PER_UNIT).astype(np.intp), 0, painted.shape[0] - 1)
    return painted[row, column]


def _wave(x: np.ndarray, per_period: int, phase: float = 0.0) -> np.ndarray:
    """A sine with a whole number of waves in a tile."""
    return np.sin(2 * np.pi * (per_period * x / PERIOD + phase))


def _scatter(painted: np.ndarray, x: np.ndarray, y: np.ndarray, count: int, radius: float, colour: tuple) -> None:
    """Paint `count` disks; the same ones at every call."""
    for cx, cy in np.random.default_rng(_SEED).uniform((0, TOP), (PERIOD, BOTTOM), (count, 2)):
        across = abs(x - cx)
        painted[np.minimum(across, PERIOD - across) ** 2 + (y - cy) ** 2 < radius**2] = colour


def _meadow(painted: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    painted[:] = (176, 220, 238)
    grass = y > 0.36 + 0.05 * _wave(x, 5)
    painted[grass] = (128, 186, 112)
    painted[grass & (y % 0.25 < 0.12) & ((x + 0.5 * (y // 0.25 % 2) * 0.25) % 0.25 < 0.06)] = (88, 150, 84)


def _desert(painted: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    painted[:] = (250, 232, 196)
    for level, phase, colour in (
        (0.3, 0.0, (232, 202, 142)),
        (0.58, 0.4, (216, 178, 112)),
        (0.86, 0.7, (196, 154, 92)),
    ):
        painted[y > level + 0.08 * _wave(x, 4, phase)] = colour


def _night(painted: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    painted[:] = (34, 36, 84)
    _scatter(painted, x, y, 110, 0.024, (236, 236, 250))


def _sea(painted: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    band = np.floor((y + 0.04 * _wave(x, 12)) / 0.125) % 2
    painted[:] = np.where(band[..., None] > 0, (92, 146, 190), (132, 184, 216))


def _brick(painted: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    painted[:] = (158, 96, 84)
    row = np.floor(y / 0.2)
    mortar = (y % 0.2 < 0.035) | ((x + 0.2 * (row % 2)) % 0.4 < 0.035)
    painted[mortar] = (212, 196, 184)


def _snow(painted: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    painted[:] = (206, 214, 226)
    painted[y > 0.7 + 0.06 * _wave(x, 4)] = (246, 248, 252)
    _scatter(painted, x, y, 110, 0.035, (255, 255, 255))


_PAINTERS = {
    "meadow": _meadow,
    "desert": _desert,
    "night": _night,
    "sea": _sea,
    "brick": _brick,
    "snow": _snow,
}
BACKGROUNDS = tuple(_PAINTERS)
