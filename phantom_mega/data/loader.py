"""Reads and decodes the packs of coming iterations in a background thread, so that decoding overlaps compute."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator

import torch

from phantom_mega.config import DataConfig
from phantom_mega.data.decode import DecodedTriplet, failed, make_decoder
from phantom_mega.data.plan import Pack, PackPlan, PlannedSample
from phantom_mega.data.shards import RawTriplet, ShardReader
from phantom_mega.errors import BadSampleError

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
        wait_seconds: time that the consumer waited for data so far.
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
        self.plan, self.reader, self.data, self.device = plan, reader, data, device
        self.dp_rank, self.dp_size = data_parallel_rank, data_parallel_size
        self.mp_rank, self.mp_size = model_parallel_rank, model_parallel_size
        self.global_batch_size, self.position = global_batch_size, start_position
        self.wait_seconds = 0.0
        per_iteration = max(1, global_batch_size // data_parallel_size)
        self._ready: queue.Queue = queue.Queue(max(1, data.prefetch_packs // per_iteration))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="pack-loader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[list[Microbatch]]:
        return self

    def __next__(self) -> list[Microbatch]:
        """The next iteration's microbatches.

        Raises:
            Exception: whatever stopped the background thread.
        """
        if self._closed.is_set():
            raise StopIteration
        started = time.monotonic()
        item = self._ready.get()
        self.wait_seconds += time.monotonic() - started
        if isinstance(item, BaseException):
            self.close()
            raise item
        return item

    def close(self) -> None:
        """Stop the thread; what it has prefetched is dropped."""
        self._closed.set()
        while self._thread.is_alive():
            try:
                self._ready.get_nowait()
            except queue.Empty:
                self._thread.join(0.05)

    def _work(self) -> None:
        try:
            decoder = make_decoder(self.data, self.device)
            while not self._closed.is_set():
                self._put(self._load(decoder))
                self.position += self.global_batch_size
        except BaseException as error:  # handed to the consumer: nothing may end silently in a thread
            self._put(error)

    def _put(self, item: object) -> None:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def _load(self, decoder) -> list[Microbatch]:
        positions = range(self.position + self.dp_rank, self.position + self.global_batch_size, self.dp_size)
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
                    microbatches[i][1][j] = failed(pack[j], str(error))
        for (i, j), decoded in zip(places, decoder.decode(readable), strict=True):
            microbatches[i][1][j] = decoded
        return microbatches

    def _read(self, sample: PlannedSample) -> RawTriplet:
        size = int(self.plan.index.column("clip_bytes")[sample.row])
        if size > self.data.max_clip_bytes:
            shard = str(self.plan.index.column("shard")[sample.row])
            reason = f"the clip has {size} bytes, more than data.max_clip_bytes={self.data.max_clip_bytes}"
            raise BadSampleError(sample.key, shard, reason)
        return self.reader.read(sample.row)
