"""Who computes what in the Triton window attention: tables that programs read, made on the host with NumPy.

The kernels number the tokens of a pack by *position*: the V video rows window after window, then the H shared rows
sample after sample (`WindowPlan.video_rows`, `shared_rows`), so every window and every sample's shared part is a range.
Beyond the V + H positions come the *slots*: one for each pair of a window and a shared row of its sample, window after
window. Log-sum-exps and deltas stand in arrays over positions and slots.

A tile is at most `tile` positions of one window, or of one sample's shared rows. One table serves all kernels, whether
the tile's rows act as queries or as keys; windows of any length leave no empty program.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np
import torch

from phantom_mega.attention import Windows
from phantom_mega.windows import WindowPlan

# Columns of a tile: its positions [start, stop), its sample's shared positions [first, last), its windows [first, last)
# (of a video tile one, of a shared tile all of the sample), whether it is a shared tile, and the sample's windows.
COLUMNS = 8


@dataclass(frozen=True)
class TileIndex:
    """A pack's index arrays on the device.

    Attributes:
        rows: int32 [V + H], joint index of every position.
        windows: int32 [windows + 1, 2], first position of every window, and what to add to a shared position of its
            sample to get the window's slot; the last row only closes the first column.
        tables: (tile table int32 [tiles, COLUMNS], its number of shared tiles, which come first) by size of tile.
        video, shared, slots: V, H and the number of slots.
    """

    rows: torch.Tensor
    windows: torch.Tensor
    tables: dict[int, tuple[torch.Tensor, int]]
    video: int
    shared: int
    slots: int

    @classmethod
    def of(cls, windows: Windows, tiles: set[int]) -> TileIndex:
        """The index of a pack for these sizes of tile; made once and kept with the pack."""
        key = ("tiles", *sorted(tiles))
        if key not in windows.cache:
            plan, device = windows.plan, windows.video_rows.device
            offsets = tuple(map(tuple, (plan.cu_video.tolist(), plan.cu_shared.tolist(), plan.cu_windows.tolist())))
            table = window_table(*offsets)
            made = {tile: tile_table(*offsets, tile) for tile in tiles}
            windows.cache[key] = cls(
                rows=torch.cat([windows.video_rows, windows.shared_rows]).int(),
                windows=torch.from_numpy(table).to(device),
                tables={tile: (torch.from_numpy(rows).to(device), count) for tile, (rows, count) in made.items()},
                video=len(plan.video_rows),
                shared=len(plan.shared_rows),
                slots=count_slots(plan),
            )
        return windows.cache[key]


def count_slots(plan: WindowPlan) -> int:
    """Pairs of a window and a shared row of its sample: sum over samples of H_b W_b."""
    return int((np.diff(plan.cu_shared).astype(np.int64) * np.diff(plan.cu_windows)).sum())


@functools.lru_cache(maxsize=512)
def window_table(cu_video: tuple[int, ...], cu_shared: tuple[int, ...], cu_windows: tuple[int, ...]) -> np.ndarray:
    """`TileIndex.windows` from a plan's offsets."""
    own, counts = np.diff(cu_shared), np.diff(cu_windows)
    first_slot = np.concatenate([[0], np.cumsum(np.repeat(own, counts))]) + cu_video[-1] + cu_shared[-1]
    shift = np.zeros(len(cu_video), dtype=np.int64)
    shift[:-1] = first_slot[:-1] - (cu_video[-1] + np.repeat(cu_shared[:-1], counts))
    return np.stack([cu_video, shift], axis=1).astype(np.int32)


@functools.lru_cache(maxsize=512)
def tile_table(
    cu_video: tuple[int, ...], cu_shared: tuple[int, ...], cu_windows: tuple[int, ...], tile: int
) -> tuple[np.ndarray, int]:
    """All tiles of a pack from its plan's offsets.

    Returns:
        int32 [tiles, COLUMNS]: first the shared tiles, then the video tiles, of each kind those with most keys first;
        and the number of shared tiles.
    """
    shared, video = [], []
    for b, (w0, w1) in enumerate(itertools.pairwise(cu_windows)):
        h0, h1 = (cu_video[-1] + at for at in cu_shared[b : b + 2])
        shared += [(at, min(at + tile, h1), h0, h1, w0, w1, 1, w1 - w0) for at in range(h0, h1, tile)]
        for w in range(w0, w1):
            first, last = cu_video[w : w + 2]
            video += [(at, min(at + tile, last), h0, h1, w, w + 1, 0, w1 - w0) for at in range(first, last, tile)]

    def keys(row: tuple[int, ...]) -> int:
        return row[3] - row[2] + cu_video[row[5]] - cu_video[row[4]]

    ordered = [*sorted(shared, key=keys, reverse=True), *sorted(video, key=keys, reverse=True)]
    return np.array(ordered, dtype=np.int32).reshape(-1, COLUMNS), len(shared)
