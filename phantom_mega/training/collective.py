"""What ranks agree on: one rank's result or anybody's error on all of them, a pulse while some work and others wait.

Every function is a collective call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from phantom_mega.errors import UserError


def everywhere(value: object, rank: int = 0) -> object:
    """One rank's value, on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=rank)
    return box[0]


def on_first_rank(function: Callable[[], object]) -> object:
    """Run on rank 0 alone; all ranks return its result, or raise UserError with its message."""
    result, error = None, None
    if dist.get_rank() == 0:
        try:
            result = function()
        except (OSError, UserError) as problem:
            error = str(problem)
    result, error = everywhere((result, error))
    if error is not None:
        raise UserError(error)
    return result


def on_some_ranks(function: Callable[[], object], here: bool) -> object:
    """Run where `here`; returns this rank's result, or raises the first rank's UserError on all ranks."""
    result, error = None, None
    if here:
        try:
            result = function()
        except UserError as problem:
            error = str(problem)
    errors: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    for found in filter(None, errors):
        raise UserError(found)
    return result


class Pulse:
    """Ranks that wait stay in step with ranks that work alone: no collective waits longer than one step of their work.

    Every rank calls `beat` again and again, the ones that work with `busy=True` between two steps of their work, all
    of them with `busy=False` when they have nothing left, until nobody is busy: the n-th beat of a rank meets the n-th
    beat of every other.

    Args:
        device: of the flags.
        progress: called at every beat.
        received: whether this rank was told to stop.

    Attributes:
        stopped: some rank was; True on every rank from the same beat on.
    """

    def __init__(self, device: torch.device, progress: Callable[[], None], received: Callable[[], bool]):
        self.device, self._progress, self._received = device, progress, received
        self.stopped = False

    def beat(self, busy: bool) -> bool:
        """Whether any rank is busy."""
        self._progress()
        flags = torch.tensor([float(busy), float(self._received())], device=self.device)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        anyone, stop = flags.tolist()
        self.stopped |= stop > 0
        return anyone > 0

    def rest(self) -> None:
        """Wait for the ranks that are busy."""
        while self.beat(False):
            pass


def in_turn(ranks: Sequence[int], own: object) -> list:
    """The `own` of each of these ranks, on every rank."""
    return [everywhere(own, rank) for rank in ranks]
