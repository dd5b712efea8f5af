"""The plan of packs: which samples train together, in which order; a pure function of (index, settings, seed, epoch).

The position in the data is one integer, the number of packs consumed since the start. Iteration i of global batch size
G takes positions [i G, (i+1) G) whatever the number of data-parallel ranks is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from phantom_mega.config import DataConfig, ModelConfig
from phantom_mega.data.buckets import (
    BucketTable,
    draw_bucket,
    draw_references,
    draw_start,
    find_candidates,
    frame_offsets,
    frame_step,
)
from phantom_mega.data.hashing import draw_bits
from phantom_mega.data.index import TripletIndex
from phantom_mega.data.packing import pack_samples
from phantom_mega.data.report import PlanReport
from phantom_mega.errors import UserError
from phantom_mega.geometry import SampleShape, token_grid

_EPOCHS_KEPT = 2  # a walk over the end of an epoch needs this one and the next


@dataclass(frozen=True)
class PlannedSample:
    """One sample of a pack.

    Attributes:
        row: its row in the index.
        key: its key.
        height, width: training size in pixels.
        num_frames: training frames, 4k+1.
        frame_indices: source frames to decode, in decoding order.
        references: which of its references, in order.
        text_tokens: caption tokens that are kept.
        epoch: pass over the data; noise and dropout are drawn for it.
        shape: token counts; text tokens are those of the caption.
    """

    row: int
    key: str
    height: int
    width: int
    num_frames: int
    frame_indices: tuple[int, ...]
    references: tuple[int, ...]
    text_tokens: int
    epoch: int
    shape: SampleShape


Pack = tuple[PlannedSample, ...]


@dataclass(frozen=True)
class _EpochPlan:
    """One epoch in arrays, ~10 bytes a row.

    Attributes:
        members: int32 [samples], rows in training order, pack after pack.
        starts: int64 [packs + 1], pack i holds members[starts[i]:starts[i + 1]].
        resolution: int8 [rows], number of the drawn resolution.
        references: uint8 [rows], drawn number of references.
        report: counts.
    """

    members: np.ndarray
    starts: np.ndarray
    resolution: np.ndarray
    references: np.ndarray
    report: PlanReport

    def __len__(self) -> int:
        return len(self.starts) - 1


class EpochPacks(Sequence):
    """The packs of an epoch in training order; each is made when it is asked for."""

    def __init__(self, plan: PackPlan, planned: _EpochPlan, epoch: int):
        self._plan, self._planned, self._epoch = plan, planned, epoch

    def __len__(self) -> int:
        return len(self._planned)

    def __getitem__(self, number: int | slice) -> Pack | list[Pack]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        number = range(len(self))[number]  # negative numbers, and IndexError beyond the end
        rows = self._planned.members[self._planned.starts[number] : self._planned.starts[number + 1]]
        return tuple(self._plan.sample(self._planned, int(row), self._epoch) for row in rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EpochPacks) and len(self) == len(other) and all(a == b for a, b in zip(self, other))

    __hash__ = None


class PackPlan:
    """Packs of every epoch; may be shared by threads.

    Args:
        index: the data sets' rows.
        data: budgets, buckets, kinds of references.
        model: for `max_references`.
        clip_tokens: vision-tower tokens of a reference.
        seed: of the run.
        empty_text_tokens: tokens of the empty prompt, which text dropout swaps in: budgets keep room for it.

    Raises:
        UserError: a wrong setting, or nothing of the index can be trained on; lists the reasons.
    """

    def __init__(
        self,
        index: TripletIndex,
        data: DataConfig,
        model: ModelConfig,
        clip_tokens: int,
        seed: int,
        empty_text_tokens: int = 1,
    ):
        _check_budgets(data)
        self.index, self.data, self.model = index, data, model
        self.clip_tokens, self.seed, self.empty_text_tokens = clip_tokens, seed, empty_text_tokens
        self._table = BucketTable(data)
        self._candidates = find_candidates(
            index, data, self._table, model.max_references, clip_tokens, empty_text_tokens
        )
        self._rows = np.flatnonzero(self._candidates.reason == 0).astype(np.int32)
        self._reference_offsets, self._reference_kinds = index.reference_kinds()
        self._lengths: list[int] = []  # packs of the epochs planned so far, from epoch 0
        self._epochs: dict[int, _EpochPlan] = {}
        self._lock = threading.RLock()
        if not len(self._rows):
            raise UserError(f"no sample can be trained on:\n{self._report(0, 0, *[np.zeros(0, dtype=np.int64)] * 4)}")

    def __len__(self) -> int:
        """Packs of epoch 0; later epochs may differ by a few."""
        return self._length(0)

    def report(self, epoch: int = 0) -> PlanReport:
        """Efficiency, buckets and left-out rows of an epoch."""
        return self._epoch(epoch).report

    def packs(self, epoch: int) -> EpochPacks:
        """All packs of an epoch, in training order; a sequence that makes each pack when it is asked for."""
        return EpochPacks(self, self._epoch(epoch), epoch)

    def locate(self, position: int) -> tuple[int, Pack]:
        """(epoch, pack) of a position counted in packs from the start of training.

        Needs the lengths of all epochs before, so the first call of a run resumed in epoch e plans e epochs unless
        `load_state_dict` brought them.

        Raises:
            UserError: a negative position.
        """
        if position < 0:
            raise UserError(f"position {position} in the data is negative")
        epoch = 0
        while position >= self._length(epoch):
            position -= self._length(epoch)
            epoch += 1
        return epoch, self.packs(epoch)[position]

    def state_dict(self) -> dict:
        """Lengths of the epochs planned so far; saves a resumed run the time to find them, nothing else."""
        with self._lock:
            return {"fingerprint": self.fingerprint(), "epoch_lengths": list(self._lengths)}

    def load_state_dict(self, state: dict) -> None:
        """Take the lengths of a plan that was made from the same index and settings; those of another are ignored."""
        with self._lock:
            if state.get("fingerprint") == self.fingerprint() and len(state["epoch_lengths"]) > len(self._lengths):
                self._lengths = list(state["epoch_lengths"])

    def fingerprint(self) -> str:
        """A hash of all that the plan depends on."""
        ignored = {
            "index_path", "valid_index_path", "decoder", "decode_threads", "prefetch_packs", "max_bad_samples",
            "max_clip_bytes",
        }  # fmt: skip
        settings = {name: value for name, value in dataclasses.asdict(self.data).items() if name not in ignored}
        numbers = (self.model.max_references, self.clip_tokens, self.seed, self.empty_text_tokens)
        return hashlib.blake2b(f"{self.index.fingerprint} {settings} {numbers}".encode(), digest_size=16).hexdigest()

    def sample(self, planned: _EpochPlan, row: int, epoch: int) -> PlannedSample:
        """One sample of a planned epoch, with its frames and references."""
        number, data = planned.resolution[row], self.data
        height, width = self._table.sizes[number, self._candidates.aspect[row]].tolist()
        frames = int(self._candidates.frames[number, row])
        stream, key_hash = (self.seed, self._draw_epoch(epoch)), self.index.key_hashes[row]
        offsets = frame_offsets(np.arange(frames), frame_step(self.index.column("fps")[row], data.frame_rate))
        start = draw_start(int(self.index.column("frames")[row]), int(offsets[-1]) + 1, key_hash, stream)
        kinds = self._reference_kinds[self._reference_offsets[row] : self._reference_offsets[row + 1]]
        references = draw_references(list(kinds), data.pair_kinds, int(planned.references[row]), key_hash, stream)
        text_tokens = min(int(self.index.column("text_tokens")[row]), data.max_text_tokens)
        return PlannedSample(
            row=row,
            key=self.index.value("key", row),
            height=height,
            width=width,
            num_frames=frames,
            frame_indices=tuple((start + offsets).tolist()),
            references=references,
            text_tokens=text_tokens,
            epoch=epoch,
            shape=SampleShape(*token_grid(frames, height, width), len(references), text_tokens, self.clip_tokens),
        )

    def _draw_epoch(self, epoch: int) -> int:
        return epoch if self.data.augment_per_epoch else 0

    def _length(self, epoch: int) -> int:
        with self._lock:
            while len(self._lengths) <= epoch:
                self._epoch(len(self._lengths))
            return self._lengths[epoch]

    def _epoch(self, epoch: int) -> _EpochPlan:
        with self._lock:
            if epoch not in self._epochs:
                while len(self._epochs) >= _EPOCHS_KEPT:
                    self._epochs.pop(next(iter(self._epochs)))
                self._epochs[epoch] = self._plan(epoch)
                if epoch == len(self._lengths):
                    self._lengths.append(len(self._epochs[epoch]))
            return self._epochs[epoch]

    def _plan(self, epoch: int) -> _EpochPlan:
        data, candidates = self.data, self._candidates
        # The order is that of hashes of the keys, so it does not depend on how rows are sorted in the index.
        order = np.argsort(draw_bits(self.index.key_hashes[self._rows], self.seed, epoch, "order"), kind="stable")
        rows = self._rows[order]
        resolution, references = draw_bucket(
            self._table, candidates, data, rows, self.index.key_hashes[rows], self.clip_tokens,
            (self.seed, self._draw_epoch(epoch)),
        )  # fmt: skip
        latents = (candidates.frames[resolution, rows] + 3) // 4
        visual = self._table.frame_tokens[resolution, candidates.aspect[rows]] * (latents + references)
        text = candidates.text[rows] + references.astype(np.int64) * self.clip_tokens
        packs = pack_samples(visual, text, data.seq_length, data.text_seq_length, data.packing_lookahead)
        report = self._report(epoch, len(packs), rows, resolution, references, visual, int(text.sum()))
        shuffle = np.argsort(draw_bits(np.arange(len(packs)), self.seed, epoch, "packs"), kind="stable")
        packs = [packs[number] for number in shuffle]
        starts = np.concatenate([[0], np.cumsum([len(pack) for pack in packs])])
        members = rows[np.fromiter((place for pack in packs for place in pack), dtype=np.int64, count=len(rows))]
        return _EpochPlan(members, starts, self._by_row(rows, resolution), self._by_row(rows, references), report)

    def _by_row(self, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        spread = np.zeros(len(self.index), dtype=values.dtype)
        spread[rows] = values
        return spread

    def _report(
        self, epoch: int, packs: int, rows: np.ndarray, resolution: np.ndarray, references: np.ndarray,
        visual: np.ndarray, text: int = 0,
    ) -> PlanReport:  # fmt: skip
        table, candidates = self._table, self._candidates
        frames, aspect = candidates.frames[resolution, rows], candidates.aspect[rows].astype(np.int64)
        cells = (resolution.astype(np.int64) * 256 + aspect) << 32 | frames
        buckets, tokens = Counter(), Counter()
        order = ((cell >> 40, cell & 0xFFFFFFFF, (cell >> 32) & 255, cell) for cell in np.unique(cells).tolist())
        for number, count, ratio, cell in sorted(order):
            here, (height, width) = cells == cell, table.sizes[number, ratio].tolist()
            buckets[table.names[number], height, width, count] += int(here.sum())
            tokens[table.names[number], count] += int(visual[here].sum())
        reasons = np.bincount(candidates.reason, minlength=len(candidates.reasons)).tolist()
        room = max(packs, 1)
        return PlanReport(
            epoch=epoch,
            rows=len(self.index),
            packs=packs,
            samples=len(rows),
            efficiency=float(visual.sum() / (room * self.data.seq_length)),
            text_efficiency=text / (room * self.data.text_seq_length),
            buckets=buckets,
            tokens=tokens,
            references=Counter(references.tolist()),
            left_out=Counter({name: n for name, n in zip(candidates.reasons[1:], reasons[1:]) if n}),
            never_fit=tuple(table.never_fit(self.data.seq_length)),
        )


def _check_budgets(data: DataConfig) -> None:
    """Raise UserError for a budget or rate that cannot be right."""
    for name in ("seq_length", "text_seq_length", "max_text_tokens", "packing_lookahead", "frame_rate", "max_upscale"):
        if not getattr(data, name) > 0:
            raise UserError(f"data.{name} is {getattr(data, name)}; it must be positive")
