"""The plain model's weights out of a training checkpoint, tensor by tensor, whatever layout it was saved at."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from phantom_mega.checkpoint.reader import CheckpointReader
from phantom_mega.checkpoint.rewrite import EMA, MAIN, OPTIMIZER
from phantom_mega.errors import UserError
from phantom_mega.hf.naming import hf_names, split_qkv

WEIGHTS = ("ema", "raw")


def has_ema(reader: CheckpointReader) -> bool:
    """Whether the checkpoint holds averaged weights."""
    return any(key.startswith(EMA) for key in reader.tensors)


def choose_weights(reader: CheckpointReader, weights: str | None) -> str:
    """`ema` or `raw`: as asked, else the average where there is one.

    Raises:
        UserError: the average is asked for and there is none.
    """
    if weights not in (None, *WEIGHTS):
        raise UserError(f"weights={weights!r} is unknown; use one of {', '.join(WEIGHTS)}")
    if weights == "ema" and not has_ema(reader):
        raise UserError(f"{reader.folder} holds no EMA; use raw weights")
    return weights or ("ema" if has_ema(reader) else "raw")


def source_key(reader: CheckpointReader, name: str, weights: str) -> str:
    """Key of the most precise values of a core parameter: the average, or its fp32 copy where weights are bf16."""
    if weights == "ema":
        return EMA + name
    return MAIN + name if MAIN + name in reader.tensors else name


def core_weights(reader: CheckpointReader) -> list[str]:
    """Names of the core parameters in the checkpoint, in the order in which its files hold them."""
    return [key for key in reader.tensors if not key.startswith(OPTIMIZER)]


def plain_weights(
    reader: CheckpointReader, heads: int, weights: str, names: list[str] | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name in the plain model, tensor) one by one; memory is bounded by the largest tensor.

    Args:
        reader: of the checkpoint.
        heads: attention heads of the model.
        weights: `ema` or `raw`.
        names: core parameters to read; all by default.
    """
    for name in core_weights(reader) if names is None else names:
        tensor = reader.read(source_key(reader, name, weights))
        plain = hf_names(name)
        parts = [tensor] if len(plain) == 1 else split_qkv(tensor, heads)
        yield from zip(plain, parts, strict=True)
