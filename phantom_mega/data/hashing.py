"""Random numbers as functions of (seed, epoch, purpose, key), for whole columns of keys at once.

A key's 64-bit hash is mixed with the hash of the rest, so a draw never depends on the order of rows, on other rows,
or on the version of NumPy's generators. The mixer is the finalizer of SplitMix64 (Steele et al. 2014).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np


def hash_keys(keys: Iterable[str]) -> np.ndarray:
    """uint64 [n], the first 8 bytes of every key's blake2b."""
    blake2b = hashlib.blake2b
    digests = b"".join(blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def draw_bits(key_hashes: np.ndarray, *stream: object) -> np.ndarray:
    """uint64 [n], independent uniform bits for every key.

    Args:
        key_hashes: uint64 [n].
        stream: what else the draw depends on, e.g. (seed, epoch, "order").
    """
    digest = hashlib.blake2b("/".join(map(str, stream)).encode(), digest_size=16).digest()
    first, second = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
    with np.errstate(over="ignore"):
        return _mix(_mix(np.asarray(key_hashes, dtype=np.uint64) + first) ^ second)


def draw_uniform(key_hashes: np.ndarray, *stream: object) -> np.ndarray:
    """float64 [n] in [0, 1), as `draw_bits`."""
    return (draw_bits(key_hashes, *stream) >> np.uint64(11)) * 2.0**-53


def _mix(z: np.ndarray) -> np.ndarray:
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
