"""Start several trainer runs on some ranks, and compare what they leave."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from phantom_mega.checkpoint.reader import CheckpointReader
from tests.parallel.launch import launch

# What must be the same in two runs that claim to be one.
EXACT = ("loss", "grad_norm", "data_digest", "learning_rate", "ema_decay", "consumed_samples", "video_tokens")

# Several gradient buckets, some padded for the distributed optimizer; megatron has one bucket without overlap.
SMALL_BUCKETS = ["parallel.ddp_bucket_size=5000", "parallel.overlap_grad_reduce=true"]


def start(folder: Path, ranks: int, data: Path, cases: list[dict], timeout: float = 400.0) -> dict[str, dict]:
    """Run the cases one after another in one start of `ranks` processes.

    Args:
        folder: runs are written below it, by each case's `run`.
        ranks: world size.
        data: the data set.
        cases: of `worker.run_case`; `overrides` are settings.

    Returns:
        Each case's result by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases:
        case["overrides"] = [f"data.index_path=[{data}]", *case.get("overrides", [])]
        case.setdefault("name", case["run"])
    (folder / "cases.json").write_text(json.dumps(cases))
    launch("tests.reliability.worker", ranks, folder, str(folder / "cases.json"), timeout=timeout)
    return json.loads((folder / "results.json").read_text())


def unequal(one: Path, two: Path) -> list[str]:
    """What differs between two checkpoints, to the bit: keys, tensors, and the rest but for learning-rate settings."""
    readers = [CheckpointReader(path) for path in (one, two)]
    keys = [set(reader.tensors) for reader in readers]
    differing = sorted(keys[0] ^ keys[1])
    for key in sorted(keys[0] & keys[1]):
        a, b = (reader.read(key) for reader in readers)
        if not torch.equal(a, b):
            differing.append(f"{key}: {(a - b).abs().max()}")
    common = [reader.common() for reader in readers]
    if common[0] != common[1]:
        differing.append(f"common state: {common}")
    return differing


def ranks_of(run: Path) -> list[int]:
    """Process ids of a run's ranks, by rank."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            values = (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes()
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        rank = next((int(v[5:]) for v in values if v.startswith(b"RANK=")), None)
        if rank is not None and b"_rank.py" in command and str(run).encode() in command:
            found.append((rank, int(folder.name), parent))
    pids = {pid for _, pid, _ in found}
    return [pid for _, pid, parent in sorted(found) if parent not in pids]  # not what a rank forked
