"""Compare checkpoints tensor by tensor, holding two tensors at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from phantom_mega.checkpoint.reader import CheckpointReader

# Values that are looked at together; differences are taken in float64.
_BLOCK = 1 << 20


def difference(one: torch.Tensor, two: torch.Tensor) -> str | None:
    """What differs between two tensors: number format, shape, or values (to the bit; NaNs of equal bits are equal).

    Returns:
        A few words, or None for equal tensors.
    """
    if one.dtype != two.dtype:
        return f"{_name(one.dtype)} against {_name(two.dtype)}"
    if one.shape != two.shape:
        return f"shape {list(one.shape)} against {list(two.shape)}"
    one, two = one.flatten(), two.flatten()
    count, largest = 0, 0.0
    for a, b in zip(one.split(_BLOCK), two.split(_BLOCK), strict=True):
        unequal = (_bytes(a) != _bytes(b)).any(1)
        if unequal.any():
            count += int(unequal.sum())
            largest = max(largest, float((a[unequal].double() - b[unequal].double()).abs().nan_to_num(torch.inf).max()))
    return f"{count:,} of {one.numel():,} values differ, by {largest:.3g} at most" if count else None


def compare(
    one: CheckpointReader, two: CheckpointReader, progress: Callable[[], None] = lambda: None
) -> Iterator[tuple[str, str]]:
    """What differs between two checkpoints.

    Args:
        one, two: opened checkpoints of any layout.
        progress: called once for each key of either.

    Yields:
        (key, what differs).
    """
    for key in {**one.tensors, **two.tensors}:
        present = key in one.tensors, key in two.tensors
        if all(present):
            found = difference(one.read(key), two.read(key))
        else:
            found = f"only in the {'first' if present[0] else 'second'}"
        if found:
            yield key, found
        progress()


def _bytes(values: torch.Tensor) -> torch.Tensor:
    """[values, bytes of one], so that equality is of bits."""
    return values.contiguous().view(torch.uint8).view(-1, values.dtype.itemsize)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
