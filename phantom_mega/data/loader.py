"""Reads and decodes the packs of coming iterations in a background thread, so that decoding overlaps compute."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator

import torch

from phantom_mega.config import DataConfig
from phantom_mega.data.decode import DecodedTriplet, failed, make_decoder
from phantom_mega.data.plan import Pack, PackPlan, PlannedSample
from phantom_mega.data.prefetch import Prefetcher, side_stream
from phantom_mega.data.shards import RawTriplet, ShardReader
from phantom_mega.data.watch import InFlight, report_stuck
from phantom_mega.errors import BadSampleError, UserError

# References, masks and JSON of a sample, together.
MAX_REST_BYTES = 256 << 20

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
        self.errors: list[str] = []
        self._per_iteration = global_batch_size // data_parallel_size
        self.tasks = InFlight()
        # Packs, not iterations: with gradient accumulation an iteration may be larger than memory.
        self._prefetcher = Prefetcher(
            functools.partial(self._work, start_position), data.prefetch_packs, "data worker",
            data.worker_timeout, "data.worker_timeout", lambda problem: report_stuck(problem, self.tasks),
        )  # fmt: skip

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
        iteration = [self.take() for _ in range(self._per_iteration)]
        self.errors = [item.error for _, share in iteration for item in share if item is not None and item.error]
        self.position += self.global_batch_size
        return iteration

    def take(self) -> Microbatch:
        """The next of this rank's packs, for who does not count in iterations.

        Raises: as `__next__`.
        """
        return self._prefetcher.take()

    @property
    def wait_seconds(self) -> float:
        """Time that the consumer waited for data so far."""
        return self._prefetcher.wait_seconds

    def close(self) -> None:
        """Stop the thread; what it has prefetched is dropped. May be called twice."""
        self._prefetcher.close()

    def _work(self, start: int, put: Callable[[Microbatch], bool]) -> None:
        with self.tasks.at("starting the decoder"):
            decoder = make_decoder(self.data, self.device, self.tasks)
        # Several packs at once give the decoder's threads more to do; the rest of the queue keeps the step fed.
        together = max(1, self.data.prefetch_packs // 2)
        for first in itertools.count(start + self.dp_rank, together * self.dp_size):
            with side_stream(self.device):
                loaded = self._load([first + i * self.dp_size for i in range(together)], decoder)
            if not all(map(put, loaded)):
                return

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
