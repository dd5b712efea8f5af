"""The clock, and statistics of what it measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Spread:
    """Milliseconds of repeated measurements: median and range.

    Attributes:
        median, min, max: milliseconds.
        count: measurements.
    """

    median: float
    min: float
    max: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of at least one measurement."""
        values = list(values)
        return cls(statistics.median(values), min(values), max(values), len(values))


class Clock:
    """CUDA events on a GPU, `perf_counter` elsewhere; a mark is a point of time in the stream of work."""

    def __init__(self, device: torch.device):
        self.on_gpu = device.type == "cuda"

    def mark(self):
        """Now, in the order of the work given to the device so far."""
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self, first, second) -> float:
        """Between two marks; waits for the work before the second."""
        if not self.on_gpu:
            return 1000 * (second - first)
        second.synchronize()
        return first.elapsed_time(second)

    def time(self, work: Callable[[], object]) -> float:
        """Milliseconds of one call."""
        first = self.mark()
        work()
        return self.milliseconds(first, self.mark())


def share(total: int, rounds: int) -> list[int]:
    """Spread `total` iterations over at most `rounds` rounds, each with at least one: 8 over 3 is 3, 3, 2."""
    rounds = max(1, min(total, rounds))
    return [total // rounds + (i < total % rounds) for i in range(rounds)]


def tflops(flops: float, milliseconds: float) -> float:
    """TFLOP/s."""
    return flops / milliseconds / 1e9
