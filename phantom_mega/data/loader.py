"""Reads and decodes the packs of coming iterations in a background thread, so that decoding overlaps compute."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Iterator

import torch

from phantom_mega.config import DataConfig
from phantom_mega.data.decode import DecodedTriplet, failed, make_decoder
from phantom_mega.data.plan import Pack, PackPlan, PlannedSample
from phantom_mega.data.shards import RawTriplet, ShardReader
from phantom_mega.data.watch import InFlight, report_stuck
from phantom_mega.errors import BadSampleError, UserError

# References, masks and JSON of a sample, together.
MAX_REST_BYTES = 256 << 20
# After these seconds a thread that does not end is left behind: it dies with the process.
_CLOSE_SECONDS = 20.0

# (pack, its samples: decoded where they are this rank's share, else None)
Microbatch = tuple[Pack, list[DecodedTriplet | None]]


class PackLoader:
    """Iterates over iterations; each is the list of this data-parallel rank's microbatches.

    Sample j of a pack is decoded by model-parallel rank j % model_parallel_size alone. The same arguments give the same
    items from any start position.

    Args:
        plan: of packs.
        reader: of samples by index row.
        data: decoder, prefetch, size limits.
        data_parallel_rank, data_parallel_size: which packs are this rank's.
        model_parallel_rank, model_parallel_size: which samples of them are this rank's.
        global_batch_size: packs of one iteration over all data-parallel ranks.
        start_position: packs consumed before.
        device: where decoded clips go.

    Attributes:
        position: packs consumed, over all data-parallel ranks, when the last delivered iteration is done.
        wait_seconds: time that the consumer waited for data so far.
        errors: of the last delivered iteration, one message for each unreadable sample of this rank's share.

    Raises:
        UserError: `global_batch_size` is not a multiple of `data_parallel_size`, or a negative `data.worker_timeout`.
    """

    def __init__(
        self,
        plan: PackPlan,
        reader: ShardReader,
        data: DataConfig,
        *,
        data_parallel_rank: int = 0,
        data_parallel_size: int = 1,
        model_parallel_rank: int = 0,
        model_parallel_size: int = 1,
        global_batch_size: int = 1,
        start_position: int = 0,
        device: torch.device | str = "cpu",
    ):
        if global_batch_size % data_parallel_size:
            raise UserError(
                f"global_batch_size={global_batch_size} is not a multiple of data_parallel_size={data_parallel_size}"
            )
        if not data.worker_timeout >= 0:  # written so that NaN is refused too
            raise UserError(f"data.worker_timeout={data.worker_timeout:g} is no time to wait; 0 waits for ever")
        self.plan, self.reader, self.data, self.device = plan, reader, data, device
        self.dp_rank, self.dp_size = data_parallel_rank, data_parallel_size
        self.mp_rank, self.mp_size = model_parallel_rank, model_parallel_size
        self.global_batch_size, self.position = global_batch_size, start_position
        self.wait_seconds = 0.0
        self.errors: list[str] = []
        self._per_iteration = global_batch_size // data_parallel_size
        # Packs, not iterations: with gradient accumulation an iteration may be larger than memory.
        self._ready: queue.Queue[Microbatch | BaseException] = queue.Queue(max(1, data.prefetch_packs))
        self._closed, self._abandoned = threading.Event(), False
        self._failure: BaseException | None = None
        self.tasks = InFlight()
        self._thread = threading.Thread(target=self._work, args=(start_position,), name="pack-loader", daemon=True)
        self._thread.start()

    def __enter__(self) -> PackLoader:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __iter__(self) -> Iterator[list[Microbatch]]:
        return self

    def __next__(self) -> list[Microbatch]:
        """The next iteration's microbatches.

        Raises:
            DataWorkerError: nothing came for `data.worker_timeout` seconds, or the thread is gone; stacks were printed.
            Exception: whatever stopped the background thread, now and at every later call.
            StopIteration: after `close`.
        """
        iteration = [self._take() for _ in range(self._per_iteration)]
        self.errors = [item.error for _, share in iteration for item in share if item is not None and item.error]
        self.position += self.global_batch_size
        return iteration

    def _take(self) -> Microbatch:
        if self._failure is not None:
            raise self._failure
        if self._closed.is_set():
            raise StopIteration
        started = time.monotonic()
        item = self._wait(started)
        self.wait_seconds += time.monotonic() - started
        if isinstance(item, BaseException):
            self._failure = item
            self.close()
            raise item
        return item

    def _wait(self, started: float) -> Microbatch | BaseException:
        """The next item, or what to raise in its place."""
        timeout = self.data.worker_timeout
        while True:
            # Asked before the queue: what a thread left there at its end still counts.
            alive = self._thread.is_alive()
            try:
                return self._ready.get(timeout=min(1.0, timeout / 4) if timeout else 1.0)
            except queue.Empty:
                waited = time.monotonic() - started
            if not alive:
                return report_stuck("the data worker is gone without a word", self.tasks)
            if timeout and waited > timeout:
                problem = f"the data worker gave nothing for {waited:.0f} s (data.worker_timeout={timeout:g})"
                error = report_stuck(problem, self.tasks)
                self._abandoned = True
                return error

    def close(self) -> None:
        """Stop the thread; what it has prefetched is dropped. May be called twice."""
        self._closed.set()
        deadline = time.monotonic() + (0.0 if self._abandoned else _CLOSE_SECONDS)
        while self._thread.is_alive() and time.monotonic() < deadline:
            try:
                self._ready.get_nowait()
            except queue.Empty:
                self._thread.join(0.05)

    def _work(self, start: int) -> None:
        try:
            with self.tasks.at("starting the decoder"):
                decoder = make_decoder(self.data, self.device, self.tasks)
            # Several packs at once give the decoder's threads more to do; the rest of the queue keeps the step fed.
            together = max(1, self.data.prefetch_packs // 2)
            for first in itertools.count(start + self.dp_rank, together * self.dp_size):
                for microbatch in self._load([first + i * self.dp_size for i in range(together)], decoder):
                    self._put(microbatch)
                if self._closed.is_set():
                    return
        except BaseException as error:  # handed to the consumer: nothing may end silently in a thread
            self._put(error)

    def _put(self, item: Microbatch | BaseException) -> None:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def _load(self, positions: list[int], decoder) -> list[Microbatch]:
        with self.tasks.at(f"planning packs {positions[0]}..{positions[-1]}"):
            packs = [self.plan.locate(position)[1] for position in positions]
        readable: list[tuple[PlannedSample, RawTriplet]] = []
        places: list[tuple[int, int]] = []
        microbatches: list[Microbatch] = [(pack, [None] * len(pack)) for pack in packs]
        for i, pack in enumerate(packs):
            for j in range(self.mp_rank, len(pack), self.mp_size):
                try:
                    readable.append((pack[j], self._read(pack[j])))
                    places.append((i, j))
                except BadSampleError as error:
                    microbatches[i][1][j] = failed(pack[j], str(error), self.device)
        for (i, j), decoded in zip(places, decoder.decode(readable), strict=True):
            microbatches[i][1][j] = decoded
        return microbatches

    def _read(self, sample: PlannedSample) -> RawTriplet:
        shard, clip, whole = (self.plan.index.value(name, sample.row) for name in ("shard", "clip_bytes", "bytes"))
        if clip > self.data.max_clip_bytes:
            reason = f"the clip has {clip} bytes, more than data.max_clip_bytes={self.data.max_clip_bytes}"
            raise BadSampleError(sample.key, shard, reason)
        if whole > self.data.max_clip_bytes + MAX_REST_BYTES:
            reason = f"the sample has {whole} bytes, more than data.max_clip_bytes and {MAX_REST_BYTES} for the rest"
            raise BadSampleError(sample.key, shard, reason)
        with self.tasks.at(f"reading sample {sample.key} of {shard}"):
            raw = self.reader.read(sample.row)
        if len(raw.triplet.references) <= max(sample.references, default=-1):
            reason = f"it has {len(raw.triplet.references)} references, fewer than the index says; rebuild the index"
            raise BadSampleError(sample.key, raw.shard, reason)
        return raw
