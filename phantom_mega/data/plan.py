"""The plan of packs: which samples train together, in which order; a pure function of (index, settings, seed, epoch).

The position in the data is one integer, the number of packs consumed since the start. Iteration i of global batch size
G takes positions [i G, (i+1) G) whatever the number of data-parallel ranks is.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from phantom_mega.config import DataConfig, ModelConfig
from phantom_mega.data.buckets import Assignment, assign, choose_references, key_uniforms
from phantom_mega.data.index import TripletIndex
from phantom_mega.data.packing import pack_samples
from phantom_mega.data.schema import MAX_REFERENCES
from phantom_mega.errors import UserError
from phantom_mega.geometry import SampleShape, token_grid


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


@dataclass
class PlanReport:
    """What the plan of an epoch looks like, for people.

    Attributes:
        packs: number of packs.
        samples: samples in them.
        efficiency: visual tokens over packs x seq_length.
        buckets: samples by training size.
        left_out: rows that do not train, by reason.
    """

    packs: int
    samples: int
    efficiency: float
    buckets: Counter = field(default_factory=Counter)
    left_out: Counter = field(default_factory=Counter)

    def __str__(self) -> str:
        lines = [f"{self.samples} samples in {self.packs} packs, filled to {100 * self.efficiency:.1f}%"]
        lines += [f"  {name:<28}{count:>9} samples" for name, count in sorted(self.buckets.items())]
        lines += [f"  left out: {reason:<50}{count:>9}" for reason, count in self.left_out.most_common()]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Epoch:
    packs: list[list[int]]
    rows: np.ndarray
    references: list[tuple[int, ...]]
    assignment: Assignment
    start: np.ndarray
    report: PlanReport


class PackPlan:
    """Packs of every epoch.

    Args:
        index: the data sets' rows.
        data: budgets, buckets, kinds of references.
        model: for `max_references`.
        clip_tokens: vision-tower tokens of a reference.
        seed: of the run.
        empty_text_tokens: tokens of the empty prompt, which text dropout swaps in: budgets keep room for it.

    Raises:
        UserError: nothing of the index can be trained on; lists the reasons.
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
        self.index, self.data, self.model = index, data, model
        self.clip_tokens, self.seed, self.empty_text_tokens = clip_tokens, seed, empty_text_tokens
        self._cache: dict[int, _Epoch] = {}
        if not self._epoch(0).packs:
            raise UserError(f"nothing can be trained on:\n{self.report(0)}")

    def report(self, epoch: int = 0) -> PlanReport:
        """Efficiency, buckets and left-out rows of an epoch."""
        return self._epoch(epoch).report

    def __len__(self) -> int:
        """Packs of epoch 0; later epochs may differ by a few."""
        return len(self._epoch(0).packs)

    def packs(self, epoch: int) -> list[Pack]:
        """All packs of an epoch, in training order."""
        planned = self._epoch(epoch)
        return [self._materialize(planned, pack, epoch) for pack in planned.packs]

    def locate(self, position: int) -> tuple[int, Pack]:
        """(epoch, pack) of a position counted in packs from the start of training."""
        epoch = 0
        while position >= len(self._epoch(epoch).packs):
            position -= len(self._epoch(epoch).packs)
            epoch += 1
        planned = self._epoch(epoch)
        return epoch, self._materialize(planned, planned.packs[position], epoch)

    def _draw_epoch(self, epoch: int) -> int:
        return epoch if self.data.augment_per_epoch else 0

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._cache:
            while len(self._cache) >= 3:  # a walk needs the current epoch and, at its end, the next
                self._cache.pop(next(iter(self._cache)))
            self._cache[epoch] = self._plan(epoch)
        return self._cache[epoch]

    def _plan(self, epoch: int) -> _Epoch:
        column, data = self.index.column, self.data
        keys = column("key")
        draws = key_uniforms(keys, self.seed, self._draw_epoch(epoch), 3 + MAX_REFERENCES)
        columns = {name: column(name) for name in ("height", "width", "frames", "fps")}
        assignment = assign(data, columns, draws[:, 0])
        offsets, kinds = self.index.reference_kinds()
        references = [
            choose_references(
                list(kinds[offsets[row] : offsets[row + 1]]), data.pair_kinds, self.model.max_references, draws[row, 2:]
            )
            for row in range(len(keys))
        ]
        visual, text = self._token_counts(assignment, np.array([len(chosen) for chosen in references]))
        reasons = self._left_out(assignment, visual, text)
        rows = np.flatnonzero(reasons == "")
        # The order is that of the keys' hashes, so it does not depend on how rows are sorted in the index.
        rows = rows[np.argsort(_order(keys[rows], self.seed, epoch), kind="stable")]
        local = pack_samples(visual[rows], text[rows], data.seq_length, data.text_seq_length, data.packing_lookahead)
        shuffle = np.random.default_rng([self.seed, epoch]).permutation(len(local))
        packs = [rows[local[i]].tolist() for i in shuffle]
        filled = visual[rows].sum() / (max(len(packs), 1) * data.seq_length)
        report = PlanReport(len(packs), len(rows), float(filled), self._bucket_names(assignment, rows))
        report.left_out.update(reason for reason in reasons.tolist() if reason)
        usable = (columns["frames"] - 1) // assignment.stride + 1
        start = np.floor(draws[:, 1] * (np.maximum(usable - assignment.frames, 0) + 1)).astype(int)
        return _Epoch(packs, rows, references, assignment, start, report)

    def _token_counts(self, assignment: Assignment, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Visual and text-stream tokens of every row; 0 frames where no bucket fits."""
        frame_tokens = assignment.height // 16 * (assignment.width // 16)
        visual = frame_tokens * ((assignment.frames + 3) // 4 + references)
        caption = np.minimum(self.index.column("text_tokens"), self.data.max_text_tokens)
        return visual, np.maximum(caption, self.empty_text_tokens) + references * self.clip_tokens

    def _left_out(self, assignment: Assignment, visual: np.ndarray, text: np.ndarray) -> np.ndarray:
        reasons = np.full(len(visual), "", dtype=object)
        reasons[text > self.data.text_seq_length] = f"text stream over text_seq_length {self.data.text_seq_length}"
        reasons[visual > self.data.seq_length] = f"visual tokens over seq_length {self.data.seq_length}"
        reasons[self.index.column("text_tokens") < 1] = "caption tokens not counted (tools/build_index.py)"
        reasons[assignment.resolution < 0] = "too small or too short for every resolution"
        return reasons

    def _bucket_names(self, assignment: Assignment, rows: np.ndarray) -> Counter:
        names = list(self.data.resolutions)
        parts = zip(*(getattr(assignment, name)[rows].tolist() for name in ("resolution", "width", "height", "frames")))
        return Counter(f"{names[r]} {w}x{h} x {f} frames" for r, w, h, f in parts)

    def _materialize(self, planned: _Epoch, rows: list[int], epoch: int) -> Pack:
        return tuple(self._sample(planned, row, epoch) for row in rows)

    def _sample(self, planned: _Epoch, row: int, epoch: int) -> PlannedSample:
        at = planned.assignment
        height, width, frames, stride = (int(values[row]) for values in (at.height, at.width, at.frames, at.stride))
        references = planned.references[row]
        text_tokens = min(int(self.index.column("text_tokens")[row]), self.data.max_text_tokens)
        start = int(planned.start[row])
        return PlannedSample(
            row=row,
            key=str(self.index.column("key")[row]),
            height=height,
            width=width,
            num_frames=frames,
            frame_indices=tuple((start + i) * stride for i in range(frames)),
            references=references,
            text_tokens=text_tokens,
            epoch=epoch,
            shape=SampleShape(*token_grid(frames, height, width), len(references), text_tokens, self.clip_tokens),
        )


def _order(keys: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """A random number per key, for the epoch's order."""
    prefix = f"order/{seed}/{epoch}/".encode()
    numbers = (hashlib.blake2b(prefix + str(key).encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(b"".join(numbers), dtype="<u8")
