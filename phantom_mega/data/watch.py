"""What the background threads of the data are at, so that one that hangs can be named."""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from phantom_mega.errors import DataWorkerError


class InFlight:
    """Tasks that some threads have begun and not ended."""

    def __init__(self):
        self._tasks: dict[int, tuple[str, float]] = {}
        self._lock = threading.Lock()
        self._begun = 0

    @contextmanager
    def at(self, what: str) -> Iterator[None]:
        """Note a task for as long as the context lasts.

        Args:
            what: names it, as `reading sample clip_7 of shard-000001.tar`.
        """
        with self._lock:
            self._begun += 1
            number = self._begun
            self._tasks[number] = (what, time.monotonic())
        try:
            yield
        finally:
            with self._lock:
                del self._tasks[number]

    def describe(self) -> str:
        """All tasks, the oldest first, with the seconds that they have lasted."""
        with self._lock:
            tasks = list(self._tasks.values())
        now = time.monotonic()
        return "; ".join(f"{what} since {now - since:.0f} s" for what, since in tasks) or "nothing that it told of"


def report_stuck(problem: str, tasks: InFlight) -> DataWorkerError:
    """Print every thread's stack to the standard error.

    Args:
        problem: what is wrong, in one sentence without a period.
        tasks: what the workers are at.

    Returns:
        The error to raise.
    """
    message = f"{problem}; it is at: {tasks.describe()}"
    print(f"\n{message}\nThe stacks of this process:", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(all_threads=True)
    return DataWorkerError(message)
