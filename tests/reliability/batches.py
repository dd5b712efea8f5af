"""Iterates over many batches in a process of its own and prints the slope of its resident memory, as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from phantom_mega.processes import keep_memory_flat

if __name__ == "__main__":
    keep_memory_flat()  # as launchers/train.py does: before libraries start threads

import numpy as np
import psutil

from phantom_mega.config import DataConfig, ModelConfig, ResolutionConfig
from phantom_mega.data.index import TripletIndex
from phantom_mega.data.loader import PackLoader
from phantom_mega.data.plan import PackPlan
from phantom_mega.data.shards import ShardReader


def loader_of(folder: Path, **settings) -> PackLoader:
    """A loader of small packs."""
    settings = {"seq_length": 448, "resolutions": {"tiny": ResolutionConfig(48 * 64, [1, 5], 1.0)}} | settings
    data, index = DataConfig(**settings), TripletIndex.open(folder)
    return PackLoader(PackPlan(index, data, ModelConfig(), clip_tokens=4, seed=7), ShardReader(index), data)


def main(folder: Path, decoder: str, batches: int) -> None:
    """Iterate and print."""
    loader = loader_of(folder, decoder=decoder, packing_lookahead=2, seq_length=64)
    process, resident = psutil.Process(), []
    for _ in range(batches):
        next(loader)
        resident.append(process.memory_info().rss / 1024)
    epochs = loader.plan.locate(loader.position - 1)[0]
    loader.close()
    result = {"kb_per_1000_batches": round(slope(resident[batches * 2 // 5 :]), 1)}
    result |= {"mb": round(resident[-1] / 1024), "epochs": epochs}
    print(json.dumps({"decoder": decoder, "batches": batches} | result))


def slope(resident: list[float], windows: int = 6) -> float:
    """What memory grows by in 1,000 batches: the median over equal windows of a fitted line's slope.

    A leak shows in every window; a library that once allocates a larger buffer shows in one.
    """
    parts = np.array_split(np.array(resident), windows)
    return 1000 * float(np.median([np.polyfit(np.arange(len(part)), part, 1)[0] for part in parts]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
