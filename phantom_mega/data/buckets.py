"""Which resolution, size, length and references a sample trains at, for whole indexes at once.

What a sample may train at follows from its row alone (`find_candidates`), so every epoch uses the same samples; what
it trains at in one epoch is drawn from (seed, epoch, key) (`draw_bucket`). Paper 4.1: 256p and 480p, then also 720p.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from phantom_mega.config import DataConfig
from phantom_mega.data.hashing import draw_bits, draw_uniform
from phantom_mega.data.index import TripletIndex
from phantom_mega.data.schema import PAIR_KINDS
from phantom_mega.errors import UserError
from phantom_mega.geometry import bucket_size, latent_frames, token_grid


class BucketTable:
    """The sizes of a recipe.

    Args:
        data: resolutions, aspect ratios and budgets.

    Attributes:
        names: of the R resolutions with a positive weight.
        weights: float64 [R].
        sizes: int64 [R, aspect ratios, 2], (height, width) in pixels.
        frame_tokens: int64 [R, aspect ratios], visual tokens of one latent frame.
        frames: for each resolution its clip lengths, ascending.

    Raises:
        UserError: a setting that is missing or wrong.
    """

    def __init__(self, data: DataConfig):
        used = {name: resolution for name, resolution in data.resolutions.items() if resolution.weight != 0}
        if not used:
            raise UserError("data.resolutions is empty; name at least one, as {256p: {pixels: 65536, frames: [1, 37]}}")
        for name, resolution in used.items():
            _check_resolution(name, resolution)
        if not data.aspect_ratios:
            raise UserError("data.aspect_ratios is empty; name at least one, as [16:9]")
        self.names = list(used)
        self.weights = np.array([resolution.weight for resolution in used.values()])
        self.frames = [sorted(set(resolution.frames)) for resolution in used.values()]
        self.ratios = np.array([parse_aspect(text) for text in data.aspect_ratios])
        self.sizes = np.array([[bucket_size(spec.pixels, ratio) for ratio in self.ratios] for spec in used.values()])
        grids = [[math.prod(token_grid(1, int(h), int(w))) for h, w in row] for row in self.sizes]
        self.frame_tokens = np.array(grids)

    def never_fit(self, seq_length: int) -> list[str]:
        """Resolutions and lengths that no sample with a reference can train at: all alone they exceed `seq_length`."""
        return [
            f"{name} x {count} frames takes {tokens} visual tokens with one reference (data.seq_length {seq_length})"
            for name, counts, smallest in zip(self.names, self.frames, self.frame_tokens.min(1))
            for count in counts
            if (tokens := (latent_frames(count) + 1) * int(smallest)) > seq_length
        ]


def _check_resolution(name: str, resolution) -> None:
    if not resolution.weight > 0:
        raise UserError(f"data.resolutions.{name}.weight is {resolution.weight}; it must be positive (0 leaves it out)")
    if resolution.pixels < 256:
        raise UserError(f"data.resolutions.{name}.pixels is {resolution.pixels}, less than one token of 16 x 16")
    if not resolution.frames:
        raise UserError(f"data.resolutions.{name}.frames is empty; name at least one length, as [1, 37]")
    for count in resolution.frames:
        try:
            latent_frames(count)
        except UserError as error:
            raise UserError(f"data.resolutions.{name}.frames: {error}") from None


def parse_aspect(text: str) -> float:
    """`16:9` -> 16/9.

    Raises:
        UserError: not of the form width:height.
    """
    width, _, height = str(text).partition(":")
    try:
        ratio = float(width) / float(height)
    except (ValueError, ZeroDivisionError):
        ratio = 0.0
    if not 0 < ratio < math.inf:
        raise UserError(f"data.aspect_ratios: {text!r} is not width:height, as 16:9 is")
    return ratio


def frame_step(fps: np.ndarray | float, frame_rate: float) -> np.ndarray:
    """Source frames per training frame: faster clips are thinned to `frame_rate`, slower ones are taken as they are."""
    return np.maximum(np.asarray(fps, dtype=np.float64) / frame_rate, 1.0)


def frame_offsets(count: np.ndarray | int, step: np.ndarray | float) -> np.ndarray:
    """Source frame, counted from a clip's first, that is nearest to training frame number `count`."""
    return np.floor(count * step + 0.5).astype(np.int64)


@dataclass(frozen=True)
class Candidates:
    """What every row may train at; none of it depends on a draw.

    Attributes:
        aspect: uint8 [rows], nearest aspect ratio.
        frames: int32 [R, rows], training frames at each resolution; 0 where it cannot train there.
        references: uint8 [rows], usable references: those of an allowed kind, at most the model's number.
        text: int32 [rows], text tokens that a pack reserves for the caption.
        reason: int8 [rows], number in `reasons` why a row is left out; 0 where it trains.
        reasons: what the numbers mean.
    """

    aspect: np.ndarray
    frames: np.ndarray
    references: np.ndarray
    text: np.ndarray
    reason: np.ndarray
    reasons: tuple[str, ...]


def find_candidates(
    index: TripletIndex, data: DataConfig, table: BucketTable, max_references: int, clip_tokens: int, empty_text: int
) -> Candidates:
    """Find what every row may train at.

    A row trains at a resolution if its frames are large enough, it fills one of the resolution's lengths, and the
    longest that it fills fits into a pack together with one reference (if it has any).

    Args:
        index: R rows.
        data: budgets, frame rate, largest upscale, kinds of references.
        table: its sizes.
        max_references: most references of a sample.
        clip_tokens: vision-tower tokens of a reference.
        empty_text: tokens of the empty prompt, which text dropout may put in the caption's place.
    """
    height, width = index.column("height").astype(np.float64), index.column("width").astype(np.float64)
    aspect = _nearest(np.log(table.ratios), np.log(width / height))
    stored, allowed = _count_references(index, data.pair_kinds)
    references = np.minimum(allowed, max_references).astype(np.uint8)
    least = (references > 0).astype(np.int64)
    tokens = index.column("text_tokens")
    text = np.maximum(np.minimum(tokens, data.max_text_tokens), empty_text).astype(np.int32)
    step, last = frame_step(index.column("fps"), data.frame_rate), index.column("frames") - 1
    frames = np.zeros((len(table.names), len(index)), dtype=np.int32)
    some_large, some_long = np.zeros(len(index), dtype=bool), np.zeros(len(index), dtype=bool)
    for number, counts in enumerate(table.frames):
        size = table.sizes[number, aspect]
        large = np.maximum(size[:, 0] / height, size[:, 1] / width) <= data.max_upscale + 1e-9
        for count in counts:
            frames[number, frame_offsets(count - 1, step) <= last] = count
        long = large & (frames[number] > 0)
        visual = table.frame_tokens[number, aspect] * ((frames[number] + 3) // 4 + least)
        frames[number, ~(long & (visual <= data.seq_length))] = 0
        some_large |= large
        some_long |= long
    checks = [
        ("caption tokens not counted (tools/build_index.py --recount-text)", tokens < 1),
        (f"no reference of data.pair_kinds ({', '.join(data.pair_kinds)})",
         (stored > 0) & (allowed == 0) & (max_references > 0)),
        (f"too small for every resolution (data.max_upscale {data.max_upscale:g})", ~some_large),
        ("too short for every length of its resolutions", ~some_long),
        (f"more visual tokens than data.seq_length ({data.seq_length})", ~frames.any(0)),
        (f"more text tokens than data.text_seq_length ({data.text_seq_length})",
         text + least * clip_tokens > data.text_seq_length),
    ]  # fmt: skip
    reason = np.zeros(len(index), dtype=np.int8)
    for number, (_, left_out) in reversed(list(enumerate(checks, 1))):
        reason[left_out] = number
    return Candidates(aspect, frames, references, text, reason, ("", *(name for name, _ in checks)))


def _nearest(values: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """uint8 [n], number of the nearest of a few values."""
    order = np.argsort(values, kind="stable")
    middles = (values[order][1:] + values[order][:-1]) / 2
    return order[np.searchsorted(middles, queries)].astype(np.uint8)


def _count_references(index: TripletIndex, pair_kinds: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """References of every row: (all, of the allowed kinds)."""
    unknown = [kind for kind in pair_kinds if kind not in PAIR_KINDS]
    if unknown or not pair_kinds:
        raise UserError(f"data.pair_kinds: {pair_kinds}; it must name one or more of {', '.join(PAIR_KINDS)}")
    offsets, kinds = index.reference_kinds()
    allowed = np.concatenate([[0], np.cumsum(np.isin(kinds, pair_kinds))])[offsets]
    return np.diff(offsets), np.diff(allowed)


def draw_bucket(
    table: BucketTable, candidates: Candidates, data: DataConfig, rows: np.ndarray, hashes: np.ndarray,
    clip_tokens: int, stream: tuple,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Draw resolution and number of references of some rows.

    The resolution is drawn by weight among a row's candidates, the number of references uniformly from
    `data.min_references` to the most that the row has and that fit into a pack.

    Args:
        table, candidates, data: the recipe's sizes, what the rows may train at, budgets.
        rows: int64 [n], rows that train.
        hashes: uint64 [n], their keys' hashes.
        clip_tokens: vision-tower tokens of a reference.
        stream: what the draws depend on beside the key.

    Returns:
        int8 [n] number of the resolution, uint8 [n] number of references.
    """
    weight = np.cumsum(np.where(candidates.frames[:, rows] > 0, table.weights[:, None], 0.0), axis=0)
    point = draw_uniform(hashes, *stream, "resolution") * weight[-1]
    # Rounding may put the point on the total; the last resolution with any weight then takes it.
    resolution = np.minimum((weight <= point).sum(0), (weight < weight[-1]).sum(0))
    frame_tokens = table.frame_tokens[resolution, candidates.aspect[rows]]
    most = np.minimum(
        candidates.references[rows],
        data.seq_length // frame_tokens - (candidates.frames[resolution, rows] + 3) // 4,
    )
    if clip_tokens:
        most = np.minimum(most, (data.text_seq_length - candidates.text[rows]) // clip_tokens)
    least = np.minimum(data.min_references, most)
    count = np.floor(draw_uniform(hashes, *stream, "reference_count") * (most - least + 1)).astype(np.int64) + least
    return resolution.astype(np.int8), np.where(most > 0, count, 0).astype(np.uint8)


def draw_references(
    kinds: list[str], pair_kinds: list[str], count: int, key_hash: int, stream: tuple
) -> tuple[int, ...]:
    """Which `count` of a sample's references train, in drawn order; all orders of all subsets are equally likely."""
    usable = [number for number, kind in enumerate(kinds) if kind in pair_kinds]
    return tuple(sorted(usable, key=lambda number: int(draw_bits(key_hash, *stream, "reference", number)))[:count])


def draw_start(frames: int, span: int, key_hash: int, stream: tuple) -> int:
    """First source frame of a clip that covers `span` of `frames` source frames."""
    return int(draw_uniform(key_hash, *stream, "start") * (frames - span + 1))
