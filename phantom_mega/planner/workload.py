"""What an iteration trains on: packs of a data set's plan, or of samples drawn from the recipe's sizes alone.

S: visual tokens and L: text-stream tokens of a padded pack, G: rows that all windows read.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from phantom_mega.attention import GATHERED, check_backend
from phantom_mega.config import RunConfig
from phantom_mega.data.buckets import BucketTable
from phantom_mega.data.packing import pack_samples
from phantom_mega.errors import UserError
from phantom_mega.flops import Flops, forward_parts
from phantom_mega.geometry import SampleShape, token_grid
from phantom_mega.planner.encoders import Encoders
from phantom_mega.windows import WindowPlan, WindowSpec, plan_windows

PACKS = 256  # enough for a mean within about 1%, few enough for a second
# Many times `data.packing_lookahead`: the end of an epoch, whose packs are filled badly, must weigh little.
_DRAWN = 16384


def resolved_backend(name: str, bf16: bool) -> str:
    """What `attention.resolve_backend` makes of `auto` on a GPU.

    Raises:
        UserError: an unknown name.
    """
    check_backend(name)
    return ("varlen" if bf16 else "sdpa") if name == "auto" else name


@dataclass(frozen=True)
class PackSizes:
    """The counts of a pack that memory depends on.

    Attributes:
        visual: S.
        text: L.
        samples: B.
        rows: G, of the larger of both grids.
        windows: of the larger of both grids.
        video_rows, shared_rows: `WindowPlan.video_rows` and `shared_rows`.
        caption, clip: real tokens of the text stream.
    """

    visual: int
    text: int
    samples: int
    rows: int
    windows: int
    video_rows: int
    shared_rows: int
    caption: int
    clip: int

    @property
    def joint(self) -> int:
        """J = S + L."""
        return self.visual + self.text

    @classmethod
    def of(cls, shapes: Sequence[SampleShape], plans: Sequence[WindowPlan], visual: int, text: int) -> PackSizes:
        """Of one pack padded to `visual` and `text` tokens."""
        return cls(
            visual=visual,
            text=text,
            samples=len(shapes),
            rows=max(len(plan.gather) for plan in plans),
            windows=max(len(plan.cu_seqlens) - 1 for plan in plans),
            video_rows=len(plans[0].video_rows),
            shared_rows=len(plans[0].shared_rows),
            caption=sum(shape.text_tokens for shape in shapes),
            clip=sum(shape.references * shape.clip_tokens for shape in shapes),
        )


@dataclass(frozen=True)
class Workload:
    """Packs that stand for those of the run.

    Attributes:
        origin: where they come from, in words.
        packs: their samples.
        needed: forward FLOPs of real tokens, of every pack.
        executed: forward FLOPs with padding, of every pack.
        encoding: FLOPs of the frozen encoders, of every sample of every pack.
        sizes: of every pack.
        worst: for each count the largest over all packs.
    """

    origin: str
    packs: tuple[tuple[SampleShape, ...], ...]
    needed: tuple[Flops, ...]
    executed: tuple[Flops, ...]
    encoding: tuple[tuple[float, ...], ...]
    sizes: tuple[PackSizes, ...]
    worst: PackSizes

    def mean(self, name: str) -> float:
        """Mean over packs of a number of `SampleShape`, summed over a pack's samples."""
        return sum(getattr(shape, name) for pack in self.packs for shape in pack) / len(self.packs)

    @property
    def samples(self) -> float:
        """Mean samples of a pack."""
        return sum(map(len, self.packs)) / len(self.packs)

    @functools.cached_property
    def mean_needed(self) -> Flops:
        """Mean over packs."""
        return _mean(self.needed)

    @functools.cached_property
    def mean_executed(self) -> Flops:
        """Mean over packs."""
        return _mean(self.executed)

    @property
    def mean_encoding(self) -> float:
        """FLOPs of the frozen encoders, mean over packs."""
        return sum(map(sum, self.encoding)) / len(self.encoding)

    def encoding_share(self, ranks: int, microbatches: int) -> float:
        """FLOPs of the frozen encoders in an iteration, on the rank of a replica that has most of them.

        Ranks share whole samples: those of a pack in turn (`conditioning.share.owner`), so that a pack of one large
        video is encoded by one rank while its peers wait.
        """
        return _encoding_share(self.encoding, ranks, microbatches)

    def straggling(self, replicas: int, microbatches: int) -> float:
        """Slowest data-parallel replica's FLOPs over the mean, when each draws its own packs: all wait for it."""
        return _straggling(tuple(flops.total for flops in self.executed), replicas, microbatches)


def _mean(flops: tuple[Flops, ...]) -> Flops:
    return Flops(*(sum(getattr(each, part) for each in flops) / len(flops) for part in ("linear", "attention")))


@functools.lru_cache(maxsize=256)
def _encoding_share(encoding: tuple[tuple[float, ...], ...], ranks: int, microbatches: int) -> float:
    shares = np.array([[sum(pack[rank::ranks]) for rank in range(ranks)] for pack in encoding])
    draws = np.random.default_rng(0).integers(0, len(shares), (64, microbatches))
    return float(shares[draws].sum(1).max(1).mean())


@functools.lru_cache(maxsize=256)
def _straggling(totals: tuple[float, ...], replicas: int, microbatches: int) -> float:
    draws = np.random.default_rng(0).integers(0, len(totals), (64, replicas, microbatches))
    sums = np.array(totals)[draws].sum(-1)
    return float((sums.max(1) / sums.mean(1)).mean())


def from_packs(packs: Sequence[Sequence[SampleShape]], config: RunConfig, origin: str) -> Workload:
    """Lay out packs as the trainer does: same windows, same padding.

    Raises:
        UserError: a pack does not fit into the recipe's lengths.
    """
    model, data, spec = config.model, config.data, WindowSpec.of(config.model)
    encoders = Encoders.of(config.conditioning, config.precision)
    padded = data.seq_length, data.text_seq_length
    repeated = resolved_backend(config.parallel.attention_backend, config.precision.bf16) in GATHERED
    needed, executed, sizes = [], [], []
    for shapes in packs:
        plain = plan_windows(list(shapes), spec, False, *padded)
        plans = plain, plan_windows(list(shapes), spec, True, *padded) if spec.is_shifted(1) else plain
        needed.append(forward_parts(model, shapes, plans))
        executed.append(forward_parts(model, shapes, plans, padded, repeated))
        sizes.append(PackSizes.of(shapes, plans, *padded))
    worst = PackSizes(*(max(getattr(size, name) for size in sizes) for name in PackSizes.__dataclass_fields__))
    return Workload(
        origin, tuple(map(tuple, packs)), tuple(needed), tuple(executed),
        tuple(tuple(map(encoders.sample_flops, pack)) for pack in packs),
        tuple(sizes), worst,
    )  # fmt: skip


def from_recipe(config: RunConfig, references: int, caption_tokens: int, lengths: str = "uniform") -> Workload:
    """Packs of samples drawn from the recipe's resolutions by weight, packed by the trainer's own packer.

    Args:
        config: the run.
        references: reference images of every sample that has room for them.
        caption_tokens: caption tokens of every sample, cut to `data.max_text_tokens`.
        lengths: `uniform` draws among a resolution's clip lengths, `longest` takes the longest that fits a pack.

    Raises:
        UserError: a number out of range, or nothing of the recipe fits into a pack.
    """
    model, data = config.model, config.data
    if not 0 <= references <= model.max_references:
        raise UserError(f"--references {references} must lie in 0..{model.max_references} (model.max_references)")
    if caption_tokens < 1:
        raise UserError(f"--caption-tokens {caption_tokens} must be at least 1")
    if lengths not in ("uniform", "longest"):
        raise UserError(f"--lengths {lengths!r} is unknown; use uniform or longest")
    caption, clip = min(caption_tokens, data.max_text_tokens), config.conditioning.clip_tokens
    table, rng = BucketTable(data), np.random.default_rng(config.train.seed)
    cells: dict[tuple[int, int], list[SampleShape]] = {}
    for number, frames in enumerate(table.frames):
        for aspect in range(len(table.ratios)):
            height, width = map(int, table.sizes[number, aspect])
            shapes = [SampleShape(*token_grid(count, height, width), references, caption, clip) for count in frames]
            fitting = [
                shape
                for shape in shapes
                if shape.visual_tokens <= data.seq_length and shape.text_stream_tokens <= data.text_seq_length
            ]
            cells[number, aspect] = fitting[-1:] if lengths == "longest" else fitting
    weights = np.array([
        table.weights[number] if any(cells[number, aspect] for aspect in range(len(table.ratios))) else 0.0
        for number in range(len(table.names))
    ])  # fmt: skip
    if not weights.any():
        raise UserError(
            f"no resolution of the recipe fits {references} references into data.seq_length={data.seq_length} and "
            f"data.text_seq_length={data.text_seq_length}; raise them or lower --references"
        )
    samples = []
    numbers = rng.choice(len(weights), _DRAWN, p=weights / weights.sum())
    for number, aspect in zip(numbers.tolist(), rng.integers(0, len(table.ratios), _DRAWN).tolist(), strict=True):
        choices = cells[number, aspect]
        if choices:
            samples.append(choices[rng.integers(len(choices))])
    packs = pack_samples(
        np.array([shape.visual_tokens for shape in samples]), np.array([shape.text_stream_tokens for shape in samples]),
        data.seq_length, data.text_seq_length, data.packing_lookahead,
    )  # fmt: skip
    chosen = rng.permutation(len(packs))[:PACKS].tolist()
    origin = (
        f"assumed: sizes of the recipe by weight, all aspect ratios alike, {lengths} clip lengths, {references} "
        f"references and {caption} caption tokens a sample"
    )
    return from_packs([[samples[place] for place in packs[i]] for i in chosen], config, origin)


def from_index(config: RunConfig) -> Workload:
    """Packs of the data set's own plan, spread over its first epoch.

    Raises:
        UserError: the index cannot be read, or nothing of it can be trained on.
    """
    from phantom_mega.data.index import TripletIndex
    from phantom_mega.data.plan import PackPlan

    index = TripletIndex.open(config.data.index_path)
    plan = PackPlan(index, config.data, config.model, config.conditioning.clip_tokens, config.train.seed)
    packs = plan.packs(0)
    places = np.unique(np.linspace(0, len(packs) - 1, PACKS).astype(int)).tolist()
    origin = f"the plan of {', '.join(config.data.index_path)}: {len(packs):,} packs an epoch"
    return from_packs([[sample.shape for sample in packs[place]] for place in places], config, origin)
