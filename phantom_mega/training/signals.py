"""SIGTERM and SIGUSR1 mean: finish the step, save, exit. All ranks act on it in the same iteration."""

from __future__ import annotations

import signal
import threading

import torch
import torch.distributed as dist


class StopSignals:
    """Remembers the signals that arrive; `requested` tells all ranks whether any rank got one.

    Use as a context manager: the former handlers come back at the end.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self):
        self.received: signal.Signals | None = None
        self._former: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._remember) for number in self.SIGNALS}
        return self

    def __exit__(self, *exc) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: object) -> None:
        self.received = signal.Signals(number)

    def requested(self, device: torch.device | str = "cpu") -> bool:
        """True on every rank if any rank got a signal; a collective call."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return self.received is not None
        flag = torch.tensor(float(self.received is not None), device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return flag.item() > 0
