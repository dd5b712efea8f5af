"""Encoding shared out over model-parallel peers: each sample of a pack is encoded by one rank, then exchanged.

The two are apart because encoding is long and for each rank alone, so that a thread can do it while a step runs, and
the exchange is short and collective, so that the thread that trains must do it.
All sizes follow from the plan, so every owner broadcasts one flat buffer and no sizes are sent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist

from phantom_mega.conditioning.head import FeatureDims, InputHead, SampleFeatures
from phantom_mega.data.decode import DecodedTriplet
from phantom_mega.data.plan import Pack


def owner(position: int, size: int) -> int:
    """Model-parallel rank that decodes and encodes the sample at a position of its pack."""
    return position % size


def encode_share(
    share: Sequence[DecodedTriplet | None], head: InputHead, group: dist.ProcessGroup | None
) -> dict[int, SampleFeatures]:
    """Encode this rank's share of a pack.

    Args:
        share: a decoded sample at every position of the pack that this rank owns; the others are not read.
        head: the encoders.
        group: the model-parallel group, or None.

    Returns:
        Position in the pack -> features; `valid` is False for what could not be read. `exchange` takes it from here.
    """
    size, rank = _place(group)
    own = range(rank, len(share), size)
    return dict(zip(own, head.encode_many([share[position] for position in own])))


def exchange(
    pack: Pack,
    own: dict[int, SampleFeatures],
    dims: FeatureDims,
    group: dist.ProcessGroup | None,
    device: torch.device | str = "cpu",
) -> list[SampleFeatures]:
    """Give every rank of the group the features of all samples of the pack; a collective call.

    Broadcasts, not an all-gather: a pack often holds fewer samples than the group has ranks, and samples differ in
    size, so an all-gather's equal shares would be mostly padding.

    Args:
        pack: the planned samples; every rank of the group has the same.
        own: position in the pack -> features, of the positions that `owner` assigns to this rank.
        dims: widths of the features.
        group: the model-parallel group; None or a group of one exchanges nothing.
        device: of the buffers.

    Raises:
        ValueError: this rank's features are not of the planned sizes.
    """
    size, rank = _place(group)
    sizes = [dims.sizes(sample.shape) for sample in pack]
    for position, features in own.items():
        found = tuple(tuple(tensor.shape) for tensor in features.tensors())
        if found != sizes[position]:
            raise ValueError(f"sample {pack[position].key}: features {found}, the plan says {sizes[position]}")
    if size == 1:
        return [own[position] for position in range(len(pack))]
    lengths = [sum(map(math.prod, shapes)) + 1 for shapes in sizes]
    flat: list[torch.Tensor | None] = [None] * len(pack)
    pending = []
    for source in range(min(size, len(pack))):
        positions = [position for position in range(len(pack)) if owner(position, size) == source]
        if source == rank:
            buffer = torch.cat([flatten(own[position]) for position in positions]).to(device)
        else:
            buffer = torch.empty(sum(lengths[position] for position in positions), device=device)
        pending.append(dist.broadcast(buffer, group=group, group_src=source, async_op=True))
        for position, part in zip(positions, buffer.split([lengths[position] for position in positions])):
            flat[position] = part
    for work in pending:
        work.wait()
    valid = torch.stack([part[-1] for part in flat]).tolist()
    return [unflatten(part, shapes, flag > 0) for part, shapes, flag in zip(flat, sizes, valid)]


def flatten(features: SampleFeatures) -> torch.Tensor:
    """One float32 vector: all tensors, then 1.0 or 0.0 for `valid`."""
    flag = torch.tensor([float(features.valid)], device=features.latents.device)
    return torch.cat([*(tensor.flatten().float() for tensor in features.tensors()), flag])


def unflatten(flat: torch.Tensor, sizes: tuple[tuple[int, ...], ...], valid: bool) -> SampleFeatures:
    """The inverse of `flatten`: views into the vector."""
    parts = flat[:-1].split([math.prod(size) for size in sizes])
    return SampleFeatures(*(part.view(size) for part, size in zip(parts, sizes)), valid=valid)


def _place(group: dist.ProcessGroup | None) -> tuple[int, int]:
    """(size, rank) of this process in the group."""
    return (1, 0) if group is None else (dist.get_world_size(group), dist.get_rank(group))
