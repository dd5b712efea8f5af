"""Temporal window attention and dynamic reference injection as index arrays (paper 3.2), pure NumPy.

A pack is laid out as [visual tokens of all samples ; padding] and [text-stream tokens of all samples ; padding]. A plan
says, for one layer parity, which of these joint tokens each attention window reads (`gather`, `cu_seqlens`) and with
which weight each of its outputs goes back (`merge_weight`). One variable-length attention call then does every window
of every sample. Every video token is in one window; every reference, text and CLIP token is in all windows of its own
sample, and its outputs are averaged.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from phantom_mega.errors import UserError
from phantom_mega.geometry import SampleShape

if TYPE_CHECKING:  # an export carries this module without the run's configuration
    from phantom_mega.config import ModelConfig

# Token grid of a 720p frame: the size at which SeedVR counts spatial windows.
GRID_720P = (45, 80)


@dataclass(frozen=True)
class WindowSpec:
    """How a layer cuts a sample into windows; the fields are those of `ModelConfig`.

    Raises:
        UserError: an unknown `window_shift` or `reference_injection`, or a negative size.
    """

    window_frames: int = 9
    window_height: int = 0
    window_width: int = 0
    window_shift: str = "alternate"
    reference_injection: str = "displace"

    def __post_init__(self):
        for name, allowed in (("window_shift", ("alternate", "none")), ("reference_injection", ("displace", "append"))):
            if getattr(self, name) not in allowed:
                raise UserError(f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(allowed)}")
        for name in ("window_frames", "window_height", "window_width"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)} is negative; 0 switches windows along that axis off")

    @classmethod
    def of(cls, model: ModelConfig) -> WindowSpec:
        """The windows of a configured model."""
        return cls(**{field.name: getattr(model, field.name) for field in dataclasses.fields(cls)})

    def is_shifted(self, layer: int) -> bool:
        """Whether layer `layer`, counted from 0, uses the shifted grid."""
        return self.window_shift == "alternate" and layer % 2 == 1

    def video_frames(self, references: int) -> int:
        """Video frames of one window when `references` reference frames join it; 0 means all.

        Raises:
            UserError: `displace` leaves no room for a video frame.
        """
        if self.window_frames == 0 or self.reference_injection == "append":
            return self.window_frames
        if references >= self.window_frames:
            raise UserError(
                f"{references} references fill a window of {self.window_frames} frames; use at most "
                f"{self.window_frames - 1}, a larger window_frames, or reference_injection=append"
            )
        return self.window_frames - references


@dataclass(frozen=True)
class WindowPlan:
    """Index arrays of one pack and one layer parity. J = S + L joint tokens: visual first, then the text stream.

    Attributes:
        gather: int64 [G], joint index of every row that the windows read, window after window; inside a window: video
            tokens, reference tokens, text tokens, CLIP tokens.
        cu_seqlens: int32 [windows + 1], row offsets of the windows.
        merge_weight: float64 [G], 1 / (windows that hold the token): 1 for video tokens.
        positions: int32 [S, 3], (t, h, w) of every visual token counted inside its window; references take the last n
            temporal positions of the window's extent. Padding is at 0.
        max_seqlen: rows of the longest window.
        video_rows: int64 [V], joint index of every video token, window after window; each is there once.
        cu_video: int32 [windows + 1], offsets of the windows in `video_rows`.
        shared_rows: int64 [H], joint index of every shared token (references, text, CLIP), sample after sample.
        cu_shared: int32 [B + 1], offsets of the B samples in `shared_rows`.
        cu_windows: int32 [B + 1], first window of every sample.
    """

    gather: np.ndarray
    cu_seqlens: np.ndarray
    merge_weight: np.ndarray
    positions: np.ndarray
    max_seqlen: int
    video_rows: np.ndarray
    cu_video: np.ndarray
    shared_rows: np.ndarray
    cu_shared: np.ndarray
    cu_windows: np.ndarray


def axis_windows(length: int, size: int, shifted: bool) -> list[tuple[int, int]]:
    """[start, stop) of the windows of one axis; `size` 0 is one window. A shifted grid starts half a window early,
    so its first and last windows are short: nothing is rolled or masked.
    """
    if size == 0 or size >= length:
        return [(0, length)]
    # A window of one has no half: its shifted grid is the plain one.
    first = max(size // 2, 1) if shifted else size
    cuts = [0, *range(first, length, size), length]
    return list(itertools.pairwise(cuts))


def spatial_window_sizes(height: int, width: int, spec: WindowSpec) -> tuple[int, int]:
    """Window (height, width) in tokens for a frame of H x W tokens; 0 means the whole side.

    The counts are those at 720p: the frame is scaled to 45 x 80 tokens' area, divided there, and the quotient is the
    window at every resolution (SeedVR, arXiv 2501.01320, "720p windows"), so windows keep one size in tokens.
    """
    scale = math.sqrt(GRID_720P[0] * GRID_720P[1] / (height * width))
    sides = zip((height, width), (spec.window_height, spec.window_width), strict=True)
    return tuple(math.ceil(round(side * scale) / count) if count else 0 for side, count in sides)


@dataclass(frozen=True)
class _SampleWindows:
    """Windows of one sample: token numbers inside its own visual part, and positions of those tokens."""

    video: tuple[np.ndarray, ...]
    positions: np.ndarray


@functools.lru_cache(maxsize=4096)
def _sample_windows(
    frames: int, height: int, width: int, references: int, spec: WindowSpec, shifted: bool
) -> _SampleWindows:
    """Windows of one sample's visual tokens, cached by shape (the caption's length does not matter)."""
    size_t = spec.video_frames(references)
    size_h, size_w = spatial_window_sizes(height, width, spec)
    grid = np.arange(frames * height * width).reshape(frames, height, width)
    positions = np.zeros((frames + references, height, width, 3), dtype=np.int32)
    windows = []
    for t0, t1 in axis_windows(frames, size_t, shifted):
        for h0, h1 in axis_windows(height, size_h, shifted):
            for w0, w1 in axis_windows(width, size_w, shifted):
                windows.append(grid[t0:t1, h0:h1, w0:w1].reshape(-1))
                inside = np.stack(np.meshgrid(*map(np.arange, (t1 - t0, h1 - h0, w1 - w0)), indexing="ij"), axis=-1)
                positions[t0:t1, h0:h1, w0:w1] = inside
    # The temporal extent that references close: a full window, or the whole clip where it is not cut.
    extent = (size_t or frames) + references
    for n in range(references):
        positions[frames + n, ..., 0] = extent - references + n
        positions[frames + n, ..., 1:] = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1)
    return _SampleWindows(tuple(windows), positions.reshape(-1, 3))


def pack_offsets(shapes: list[SampleShape]) -> tuple[list[int], list[int]]:
    """First visual token and first text-stream token of every sample, with the totals appended."""
    visual, text = [0], [0]
    for shape in shapes:
        visual.append(visual[-1] + shape.visual_tokens)
        text.append(text[-1] + shape.text_stream_tokens)
    return visual, text


def plan_windows(
    shapes: list[SampleShape], spec: WindowSpec, shifted: bool, seq_length: int, text_seq_length: int
) -> WindowPlan:
    """Index arrays of one pack.

    Args:
        shapes: the samples, in pack order.
        spec: window sizes and injection.
        shifted: parity of the layer (`WindowSpec.is_shifted`).
        seq_length: S, visual tokens of the padded pack.
        text_seq_length: L, text-stream tokens of the padded pack.

    Returns:
        The plan; padding tokens are in no window.

    Raises:
        UserError: the samples do not fit, or `displace` has no room for a video frame.
    """
    visual_at, text_at = pack_offsets(shapes)
    if visual_at[-1] > seq_length or text_at[-1] > text_seq_length:
        raise UserError(
            f"the pack has {visual_at[-1]} visual and {text_at[-1]} text-stream tokens; "
            f"seq_length={seq_length} and text_seq_length={text_seq_length} allow no more"
        )
    rows, weights, lengths = [], [], []
    videos, shareds, counts = [], [], []
    positions = np.zeros((seq_length, 3), dtype=np.int32)
    for shape, visual, text in zip(shapes, visual_at, text_at):
        own = _sample_windows(shape.frames, shape.height, shape.width, shape.references, spec, shifted)
        positions[visual : visual + shape.visual_tokens] = own.positions
        references = np.arange(visual + shape.video_tokens, visual + shape.visual_tokens)
        stream = np.arange(text, text + shape.text_stream_tokens) + seq_length
        shared = np.concatenate([references, stream])
        shared_weight = np.full(len(shared), 1.0 / len(own.video))
        videos += [video + visual for video in own.video]
        shareds.append(shared)
        counts.append(len(own.video))
        for video in own.video:
            rows += [video + visual, shared]
            weights += [np.ones(len(video)), shared_weight]
            lengths.append(len(video) + len(shared))
    return WindowPlan(
        gather=np.concatenate(rows).astype(np.int64),
        cu_seqlens=_offsets(lengths),
        merge_weight=np.concatenate(weights),
        positions=positions,
        max_seqlen=max(lengths),
        video_rows=np.concatenate(videos).astype(np.int64),
        cu_video=_offsets([len(video) for video in videos]),
        shared_rows=np.concatenate(shareds).astype(np.int64),
        cu_shared=_offsets([len(shared) for shared in shareds]),
        cu_windows=_offsets(counts),
    )


def _offsets(lengths: list[int]) -> np.ndarray:
    """int32 [n + 1], where each of n consecutive parts begins, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
