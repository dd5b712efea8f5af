"""Backgrounds: painted once as tiles that repeat sideways, then averaged over the pixels of any view.

World coordinates: x to the right, y down, a frame that is not moved or zoomed covers y in [0, 1].
"""

from __future__ import annotations

import functools

import numpy as np

from phantom_mega.errors import UserError

PER_UNIT = 128  # tile pixels of a frame's height
PERIOD = 4  # frame heights after which a tile repeats sideways
TOP, BOTTOM = -0.5, 1.5  # of a tile; beyond it the last line goes on
_SEED = 20250216
_SHIFTS = (0, 16, 32)


@functools.cache
def tile(name: str) -> np.ndarray:
    """uint8 [2 * PER_UNIT, PERIOD * PER_UNIT, 3] of a background."""
    x = (np.arange(PERIOD * PER_UNIT) + 0.5) / PER_UNIT
    y = (np.arange(round((BOTTOM - TOP) * PER_UNIT)) + 0.5) / PER_UNIT + TOP
    painted = np.zeros((len(y), len(x), 3))
    _PAINTERS[name](painted, *np.meshgrid(x, y))
    painted = painted.round().astype(np.uint8)
    painted.flags.writeable = False
    return painted


def pixels(name: str, x: np.ndarray, y: np.ndarray, samples: int) -> np.ndarray:
    """float32 [F, H, W, 3] in [0, 255], each pixel the mean of `samples` x `samples` points of a background.

    Args:
        name: of `BACKGROUNDS`.
        x: float64 [F, W * samples], world coordinates of the points' columns.
        y: float64 [F, H * samples], of their rows.
        samples: at most 16.

    Raises:
        UserError: an unknown background.
    """
    if name not in _PAINTERS:
        raise UserError(f"background {name!r} is unknown; use one of {', '.join(BACKGROUNDS)}")
    packed, (rows, columns) = _packed(name), tile(name).shape[:2]
    column = np.floor(x * PER_UNIT).astype(np.int32) % columns
    row = np.clip(np.floor((y - TOP) * PER_UNIT).astype(np.int32), 0, rows - 1)
    points = packed.take(row[:, :, None] * columns + column[:, None, :])
    sums = points.reshape(len(x), -1, samples, x.shape[1]).sum(2)
    sums = sums.reshape(len(x), -1, x.shape[1] // samples, samples).sum(3)
    return np.stack([sums >> shift & 0xFFFF for shift in _SHIFTS], -1) * np.float32(samples**-2)


@functools.cache
def _packed(name: str) -> np.ndarray:
    """uint64 [pixels of the tile], three channels of 16 bits: one sum adds all three."""
    channels = tile(name).reshape(-1, 3).astype(np.uint64)
    return sum(channels[:, number] << np.uint64(shift) for number, shift in enumerate(_SHIFTS))


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
    painted[:] = (28, 30, 68)
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
    ground = 0.6 + 0.06 * _wave(x, 4)
    painted[(y < ground) & (y > 0.3) & (abs(x % 0.4 - 0.2) < 0.45 * (y - 0.3))] = (84, 124, 118)  # firs
    painted[y > ground] = (246, 248, 252)
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
