"""Ends a rank that makes no progress, with all its stacks, instead of letting a job wait in silence."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable

from phantom_mega.errors import EXIT_HUNG


class HangWatch:
    """A thread that ends the process when nothing was reported for too long.

    A collective that one rank never enters blocks all others without a word. Their watches print where they are and
    every thread's Python stack, then end the process with code 71. If Python itself is stuck (the interpreter's lock is
    held), faulthandler's own thread does so a little later. A process that was stopped as a whole (SIGSTOP, a
    suspended job) is not taken for a hung one when it goes on.

    Args:
        timeout: seconds without `progress`; 0 switches the watch off.
        where: tells where this rank is, in one line.
    """

    def __init__(self, timeout: float, where: Callable[[], str]):
        self.timeout, self._where = timeout, where
        self._tick = min(1.0, max(timeout / 10, 0.05))
        self._since: float | None = None
        self._what = ""
        self._thread: threading.Thread | None = None

    def progress(self, what: str) -> None:
        """Start the time anew; `what` is done from here on."""
        if not self.timeout:
            return
        self._what, self._since = what, time.monotonic()
        faulthandler.dump_traceback_later(self.timeout * 1.2 + 10, exit=True)
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="hang-watch", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Nothing is awaited until the next `progress`."""
        self._since = None
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        before = time.monotonic()
        while True:
            time.sleep(self._tick)
            now, since = time.monotonic(), self._since
            if now - before > self._tick + max(5.0, self.timeout / 2):
                self._since = now if since is not None else None  # this process itself was stopped
            elif since is not None and now - since > self.timeout:
                self._end(now - since)
            before = now

    def _end(self, seconds: float) -> None:
        text = (
            f"\n{self._where()} has made no progress for {seconds:.0f} s (last: {self._what}; "
            f"parallel.distributed_timeout_minutes={self.timeout / 60:g}). Another rank may be dead or stuck. "
            "The stacks of this rank:\n"
        )
        os.write(sys.stderr.fileno(), text.encode())
        faulthandler.dump_traceback(all_threads=True)
        os._exit(EXIT_HUNG)
