"""A checkpoint in words: what `tools/inspect_checkpoint.py` prints."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from phantom_mega.checkpoint import folder
from phantom_mega.checkpoint.reader import CheckpointReader
from phantom_mega.config_io import load_run_config

_OPTIMIZER, _STATE, _EMA = "optimizer.", "optimizer.state.", "optimizer.state.ema."


def size(nbytes: int) -> str:
    """`1.5 GiB`."""
    value, unit = float(nbytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.2f} {unit}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def summary(reader: CheckpointReader) -> str:
    """Iteration, model, parameters, what there is beside the weights, bytes, layout."""
    config = load_run_config(reader.folder / "config.yaml")
    state = json.loads((reader.folder / folder.STATE).read_text())
    model, parallel = config.model, config.parallel
    weights = {key: entry for key, entry in reader.tensors.items() if not key.startswith(_OPTIMIZER)}
    kinds = sorted({key.removeprefix(_STATE).split(".")[0] for key in reader.tensors if key.startswith(_STATE)})
    formats = sorted({_name(entry.dtype) for entry in weights.values()})
    files = sorted({chunk.file for entry in reader.tensors.values() for chunk in entry.chunks})
    stored = sum(entry.nbytes for entry in reader.tensors.values())
    layout = f"tensor {parallel.tensor_model_parallel_size}, pipeline {parallel.pipeline_model_parallel_size}"
    if parallel.virtual_pipeline_model_parallel_size:
        layout += f" x {parallel.virtual_pipeline_model_parallel_size} chunks"
    if parallel.context_parallel_size > 1:
        layout += f", context {parallel.context_parallel_size}"
    rows = [
        ("checkpoint", str(reader.folder)),
        ("iteration", f"{state.get('iteration')} ({state.get('consumed_samples')} samples)"),
        (
            "model",
            f"{model.num_layers} blocks, width {model.hidden_size}, {model.num_attention_heads} heads, "
            f"feed-forward {model.ffn_hidden_size}",
        ),
        ("parameters", f"{sum(entry.numel for entry in weights.values()):,} ({', '.join(formats)})"),
        ("optimizer", ", ".join(kind for kind in kinds if kind != "ema") or "none (start with train.finetune=true)"),
        ("EMA", f"yes (decay {config.train.ema_decay})" if "ema" in kinds else "no"),
        ("tensors", f"{len(reader.tensors)}, {size(stored)} in {len(files)} file(s)"),
        ("saved at", layout),
    ]
    return _columns(rows)


def table(reader: CheckpointReader, keys: Iterable[str]) -> str:
    """One line per tensor: key, shape, number format, parts, bytes."""
    rows = [("key", "shape", "dtype", "shards", "bytes")]
    for key in keys:
        entry = reader.tensors[key]
        shape = "x".join(map(str, entry.shape)) or "scalar"
        rows.append((key, shape, _name(entry.dtype), str(len(entry.chunks)), size(entry.nbytes)))
    return _columns(rows)


def shards(reader: CheckpointReader, key: str) -> str:
    """One line per part of a tensor: its place in the tensor, the file, the bytes in it.

    Raises:
        UserError: there is no such tensor.
    """
    rows = [("part", "file", "at byte", "bytes")]
    for chunk in reader.entry(key).chunks:
        ranges = (f"{start}:{start + length}" for start, length in zip(chunk.offsets, chunk.sizes, strict=True))
        rows.append((f"[{', '.join(ranges)}]", chunk.file, f"{chunk.start:,}", f"{chunk.length:,}"))
    return _columns(rows)


def values(key: str, tensor: torch.Tensor) -> str:
    """Statistics of a tensor, and its corners."""
    lines = [f"{key}  {list(tensor.shape)}  {_name(tensor.dtype)}"]
    if tensor.numel():
        numbers = tensor.double().flatten()
        finite = numbers[numbers.isfinite()]
        if len(finite):
            mean, std = float(finite.mean()), float(finite.std(correction=0))
            spread = f"min {float(finite.min()):.6g}  max {float(finite.max()):.6g}"
            lines.append(f"mean {mean:.6g}  std {std:.6g}  {spread}  norm {float(finite.norm()):.6g}")
        zeros, unfinite = int((numbers == 0).sum()), len(numbers) - len(finite)
        lines.append(f"zeros {zeros:,} of {len(numbers):,}  not finite {unfinite:,}")
    array = (tensor.float() if tensor.dtype.is_floating_point else tensor).numpy()
    lines.append(np.array2string(array, threshold=0, edgeitems=3, max_line_width=120))
    return "\n".join(lines)
