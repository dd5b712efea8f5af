"""Frames of a generated video: decoded once for all metrics, within a bound of memory, and picked evenly."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from phantom_mega.curation.video import VideoError, probe, read_frames, to_rgb
from phantom_mega.errors import UserError

MAX_FRAMES = 2048
# 4 GiB of frames: 1,553 of 1280x720, 290 of 2560x1920.
MAX_BYTES = 1 << 32


def uniform_indices(count: int, wanted: int) -> np.ndarray:
    """Evenly spaced frames, the first and the last among them.

    Args:
        count: frames there are, at least 1.
        wanted: frames to take, at least 1; where there are fewer, all of them.

    Returns:
        int64 [min(count, wanted)], ascending, none twice.

    Raises:
        ValueError: `count` or `wanted` is less than 1.
    """
    if count < 1 or wanted < 1:
        raise ValueError(f"{wanted} of {count} frames cannot be taken")
    return np.linspace(0, count - 1, min(count, wanted)).round().astype(np.int64)


def uniform(frames: np.ndarray, wanted: int) -> np.ndarray:
    """`uniform_indices` of frames [F, ...]: [min(F, wanted), ...]."""
    return frames[uniform_indices(len(frames), wanted)]


def read_video(path: Path, max_frames: int = MAX_FRAMES, max_bytes: int = MAX_BYTES) -> tuple[np.ndarray, float]:
    """All frames of a video, as a player shows them.

    Metrics need all of them at their own size: a video that is too large is refused, not thinned out.

    Args:
        path: of the video.
        max_frames: the most frames that are decoded.
        max_bytes: the most bytes that the frames may take.

    Returns:
        (uint8 [F, H, W, 3], frames per second).

    Raises:
        UserError: it cannot be read, shows no frame, changes its size, or is larger than the bounds; names it.
    """
    try:
        info = probe(path)
        most = min(max_frames, max_bytes // (3 * info.width * info.height))
        frames: list[np.ndarray] = []
        for _, frame in read_frames(path):
            if len(frames) == most:
                raise VideoError(
                    f"has more than {most} frames of {info.width}x{info.height}, the most that are measured at that "
                    "size; cut it, or scale it down"
                )
            frames.append(to_rgb(frame, info.width, info.height))
    except VideoError as error:
        raise UserError(f"{path} {error}") from None
    return np.stack(frames), info.fps
