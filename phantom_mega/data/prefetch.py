"""A thread that makes items ahead of their use, and the CUDA stream that such a thread works on."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import torch

_own = threading.local()
# After these seconds a thread that does not end is left behind: it dies with the process.
_CLOSE_SECONDS = 20.0


class Prefetcher[T]:
    """Hands over, in order, what a function makes in a thread of its own.

    Args:
        work: makes the items: gets `put`, which waits for room and says whether anybody still wants more.
        size: items that may wait to be taken.
        name: of the thread.
        timeout: seconds that `take` waits before it asks `stuck`; 0 waits as long as the thread lives.
        timeout_name: the setting that it is, for the message.
        stuck: from what is wrong to the exception that `take` raises, when the thread is gone or gives nothing.

    Attributes:
        wait_seconds: time that `take` waited so far.
    """

    def __init__(
        self,
        work: Callable[[Callable[[T], bool]], None],
        size: int,
        name: str,
        timeout: float = 0.0,
        timeout_name: str = "timeout",
        stuck: Callable[[str], BaseException] = RuntimeError,
    ):
        self._work, self._name, self._stuck = work, name, stuck
        self._timeout, self._timeout_name = timeout, timeout_name
        self._ready: queue.Queue[T | BaseException] = queue.Queue(max(1, size))
        self._closed, self._abandoned = threading.Event(), False
        self._failure: BaseException | None = None
        self.wait_seconds = 0.0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def take(self) -> T:
        """The next item.

        Raises:
            StopIteration: after `close`.
            Exception: what stopped the thread, or what `stuck` made of its silence; now and at every later call.
        """
        if self._failure is not None:
            raise self._failure
        started = time.monotonic()
        item = self._wait(started)
        self.wait_seconds += time.monotonic() - started
        if isinstance(item, BaseException):
            self._failure = item
            self.close()
            raise item
        return item

    def _wait(self, started: float) -> T | BaseException:
        """The next item, or what to raise in its place."""
        while not self._closed.is_set():
            # Asked before the queue: what a thread left there at its end still counts.
            alive = self._thread.is_alive()
            try:
                return self._ready.get(timeout=min(1.0, self._timeout / 4) if self._timeout else 1.0)
            except queue.Empty:
                waited = time.monotonic() - started
            if not alive:
                return self._stuck(f"the {self._name} is gone without a word")
            if self._timeout and waited > self._timeout:
                self._abandoned = True
                setting = f"{self._timeout_name}={self._timeout:g}"
                return self._stuck(f"the {self._name} gave nothing for {waited:.0f} s ({setting})")
        raise StopIteration

    def close(self) -> None:
        """Stop the thread; what waits to be taken is dropped. May be called twice, and from any thread."""
        self._closed.set()
        deadline = time.monotonic() + (0.0 if self._abandoned else _CLOSE_SECONDS)
        while self._thread.is_alive() and time.monotonic() < deadline:
            try:
                self._ready.get_nowait()
            except queue.Empty:
                self._thread.join(0.05)

    def _run(self) -> None:
        try:
            self._work(self._put)
        except BaseException as error:  # handed to the consumer: nothing may end silently in a thread
            self._put(error)

    def _put(self, item: T | BaseException) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False


@contextlib.contextmanager
def side_stream(device: torch.device | str) -> Iterator[None]:
    """Work of a background thread on the thread's own CUDA stream, done when the block ends; on a CPU nothing.

    The thread waits for its stream, so that whoever gets its results, on whatever stream, needs to wait for nothing.
    Results that another stream reads need `used_here` there, or their memory may be written anew while it still reads.
    """
    device = torch.device(device)
    if device.type != "cuda":
        yield
        return
    stream = _stream(device)
    # The current device is a thread's own, and the first GPU in a new one: leaving the stream would go back to that one
    # and leave a CUDA context there.
    with torch.cuda.device(device), torch.cuda.stream(stream):
        yield
        stream.synchronize()


def _stream(device: torch.device) -> torch.cuda.Stream:
    """Always the same in a thread: freed memory is kept for the stream that it was allocated on and no other."""
    if not hasattr(_own, "streams"):
        _own.streams = {}
    if device not in _own.streams:
        _own.streams[device] = torch.cuda.Stream(device)
    return _own.streams[device]


def used_here(tensors: Iterable[torch.Tensor]) -> None:
    """Keep the memory of a side stream's results until what this stream is given before they are freed is done."""
    for tensor in tensors:
        if tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))
