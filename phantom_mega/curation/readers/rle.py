"""Masks as COCO stores them: lengths of runs down the columns, as numbers or as text (cocoapi, maskApi.c)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

MAX_PIXELS = 1 << 27


def run_lengths(text: str) -> list[int]:
    """Runs out of compressed text: 5 bits a character, 32 says that more follow, from the third run on a difference.

    Raises:
        ValueError: a character that none has, or a number that breaks off.
    """
    runs, value, shift = [], 0, 0
    for letter in text.encode("ascii", "replace"):
        bits = letter - 48
        if not 0 <= bits < 64:
            raise ValueError(f"the run-length text holds {chr(letter)!r}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise ValueError("the run-length text breaks off")
    return runs


def decode_mask(rle: Mapping[str, Any]) -> np.ndarray:
    """A mask as bool [height, width].

    Args:
        rle: `size` (height, width) and `counts`, a list of numbers or compressed text; runs of zeros and ones in turn.

    Raises:
        ValueError: it is none.
    """
    try:
        height, width = (int(side) for side in rle["size"])
        counts = rle["counts"]
    except (KeyError, TypeError, ValueError):
        raise ValueError("the mask has no size of two numbers, or no counts") from None
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"the mask has {width}x{height} pixels")
    if isinstance(counts, bytes):
        counts = counts.decode("ascii", "replace")
    runs = run_lengths(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(isinstance(run, int) and 0 <= run <= height * width for run in runs):
        raise ValueError("the mask's runs are no numbers of pixels")
    if sum(runs) != height * width:
        raise ValueError(f"the mask's runs cover {sum(runs)} of {height * width} pixels")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(width, height).T
