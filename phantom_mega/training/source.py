"""Where a rank's microbatches come from: planned packs, decoded and encoded or read from the cache, then noised."""

from __future__ import annotations

import contextlib
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from megatron.core import parallel_state

from phantom_mega.conditioning.ahead import EncodeAhead, encode_next
from phantom_mega.conditioning.head import InputHead, SampleFeatures
from phantom_mega.conditioning.share import exchange
from phantom_mega.config import RunConfig
from phantom_mega.core.parallel_config import replica_group
from phantom_mega.data.index import TripletIndex
from phantom_mega.data.loader import PackLoader
from phantom_mega.data.plan import Pack, PackPlan
from phantom_mega.data.shards import ShardReader
from phantom_mega.errors import UserError
from phantom_mega.parallel_layout import check_global_batch_size
from phantom_mega.training.batch import TrainingBatch, build_batch


@dataclass(frozen=True)
class StepData:
    """What one iteration trains on, on this rank.

    Attributes:
        batches: the microbatches of this data-parallel rank; equal on its model-parallel peers.
        bad_samples: unreadable samples among those that this rank decoded, as messages.
        waited: seconds spent waiting for data: encoded ahead of the step, decoded, or read from the cache.
        digest: sum of `pack_digest` of the microbatches.
    """

    batches: list[TrainingBatch]
    bad_samples: list[str]
    waited: float
    digest: int


def pack_digest(pack: Pack) -> int:
    """32 bits that stand for what a pack trains on; summed over packs it does not depend on which rank has which."""
    named = ";".join(
        f"{sample.epoch}/{sample.key}/{sample.height}x{sample.width}/{sample.frame_indices}/{sample.references}"
        for sample in pack
    )
    return zlib.crc32(named.encode())


class BatchSource:
    """Iterates over iterations from a position in the data.

    Args:
        config: data, conditioning, model and flow sections.
        device: where encoders and batches live.

    Raises:
        UserError: the data set or an encoder cannot be used, or the batch size does not divide.
    """

    def __init__(self, config: RunConfig, device: torch.device):
        self.config, self.device = config, device
        self.dtype = torch.bfloat16 if config.precision.bf16 else torch.float32
        self.dp_size, self.dp_rank = (
            parallel_state.get_data_parallel_world_size(),
            parallel_state.get_data_parallel_rank(),
        )
        self.group = replica_group()
        self.mp_size, self.mp_rank = (
            torch.distributed.get_world_size(self.group),
            torch.distributed.get_rank(self.group),
        )
        check_global_batch_size(config.train.global_batch_size, self.dp_size)
        self.packs_per_rank = config.train.global_batch_size // self.dp_size
        self.index = TripletIndex.open(config.data.index_path)
        model = config.model
        self.cache, self.head = None, None
        if config.conditioning.cached_features:
            from phantom_mega.conditioning.cache import CachedFeatures

            if config.data.augment_per_epoch:
                raise UserError("conditioning.cached_features holds one epoch; set data.augment_per_epoch=false")
            self.cache = CachedFeatures(config.conditioning.cached_features, config)
            self.empty_text = self.cache.empty_text
        else:
            self.head = InputHead(config, device)
            self.empty_text = self.head.text.empty()
        self.plan = PackPlan(
            self.index, config.data, model, config.conditioning.clip_tokens, config.train.seed, len(self.empty_text)
        )
        if self.cache is not None:
            self.cache.check_plan(self.plan)
        self.loader: PackLoader | None = None
        self.ahead: EncodeAhead | None = None

    def open(self, position: int) -> None:
        """Start (or start again) reading at a position, counted in packs."""
        self.close()
        if self.cache is None:
            self.loader = PackLoader(
                self.plan, ShardReader(self.index), self.config.data,
                data_parallel_rank=self.dp_rank, data_parallel_size=self.dp_size,
                model_parallel_rank=self.mp_rank, model_parallel_size=self.mp_size,
                global_batch_size=self.config.train.global_batch_size, start_position=position,
                device=self.device,
            )  # fmt: skip
            if self.config.conditioning.encode_ahead:
                self.ahead = EncodeAhead(self.loader, self.head, self.group, self.packs_per_rank)
        self.position = position

    def close(self) -> None:
        """Stop the prefetching threads."""
        for one in (self.ahead, self.loader):
            if one is not None:
                one.close()
        self.ahead = self.loader = None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """No thread decodes or encodes inside, so that others may use the encoders and the memory; then all goes on."""
        was_open = self.loader is not None
        self.close()
        try:
            yield
        finally:  # also where what was tried inside failed: training goes on without it
            if was_open:
                self.open(self.position)

    def next(self) -> StepData:
        """The next iteration's microbatches.

        Raises:
            DataWorkerError: the data worker is stuck or gone.
        """
        encoded, bad, waited = self._from_cache() if self.cache is not None else self._from_clips()
        self.position += self.config.train.global_batch_size
        batches = [
            build_batch(pack, features, self.empty_text, self.config, self.device, self.dtype)
            for pack, features in encoded
        ]
        return StepData(batches, bad, waited, sum(pack_digest(pack) for pack, _ in encoded))

    def _from_clips(self) -> tuple[list[tuple[Pack, list[SampleFeatures]]], list[str], float]:
        """Packs with the features of all their samples, messages of this rank's bad ones, seconds waited."""
        source = self.ahead or self.loader
        before = source.wait_seconds
        take = self.ahead.take if self.ahead else partial(encode_next, self.loader, self.head, self.group)
        shares = [take() for _ in range(self.packs_per_rank)]
        encoded = [
            (share.pack, exchange(share.pack, share.own, self.head.dims, self.group, self.device)) for share in shares
        ]
        return encoded, [error for share in shares for error in share.errors], source.wait_seconds - before

    def _from_cache(self) -> tuple[list[tuple[Pack, list[SampleFeatures]]], list[str], float]:
        """As `_from_clips`, but for bad samples: every model-parallel peer reads all, and one of them tells."""
        started = time.monotonic()
        positions = [self.position + i * self.dp_size + self.dp_rank for i in range(self.packs_per_rank)]
        packs = [self.plan.locate(position)[1] for position in positions]
        encoded = [(pack, [self._cached(sample) for sample in pack]) for pack in packs]
        waited = time.monotonic() - started
        samples = [sample for pack in packs for sample in pack] if self.mp_rank == 0 else []
        return encoded, [error for error in map(self.cache.error, samples) if error], waited

    def _cached(self, sample) -> SampleFeatures:
        features = self.cache.get(sample)
        return SampleFeatures(*(tensor.to(self.device) for tensor in features.tensors()), valid=features.valid)
