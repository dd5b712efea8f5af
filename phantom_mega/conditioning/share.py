"""Encoding shared out over model-parallel peers: each sample of a pack is encoded by one rank, then exchanged.

All sizes follow from the plan, so the exchange is one all-gather of flat buffers and sends no sizes.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist

from phantom_mega.conditioning.head import FeatureDims, SampleFeatures
from phantom_mega.data.plan import Pack


def owner(position: int, size: int) -> int:
    """Model-parallel rank that decodes and encodes the sample at a position of its pack."""
    return position % size


def flatten(features: SampleFeatures) -> torch.Tensor:
    """One float32 vector: all tensors, then 1.0 or 0.0 for `valid`."""
    flag = torch.tensor([float(features.valid)], device=features.latents.device)
    return torch.cat([*(tensor.flatten().float() for tensor in features.tensors()), flag])


def unflatten(flat: torch.Tensor, sizes: tuple[tuple[int, ...], ...]) -> SampleFeatures:
    """The inverse of `flatten`, given the sizes of the tensors."""
    parts = flat[:-1].split([math.prod(size) for size in sizes])
    return SampleFeatures(*(part.view(size) for part, size in zip(parts, sizes)), valid=bool(flat[-1] > 0))


def exchange(
    pack: Pack,
    own: dict[int, SampleFeatures],
    dims: FeatureDims,
    group: dist.ProcessGroup | None,
    device: torch.device | str = "cpu",
) -> list[SampleFeatures]:
    """Give every rank of the group the features of all samples of the pack.

    Args:
        pack: the planned samples; every rank of the group has the same.
        own: position in the pack -> features, of the positions that `owner` assigns to this rank.
        dims: widths of the features.
        group: the model-parallel group; None or a group of one exchanges nothing.
        device: of the buffers.
    """
    size = dist.get_world_size(group) if group is not None else 1
    if size == 1:
        return [own[position] for position in range(len(pack))]
    sizes = [dims.sizes(sample.shape) for sample in pack]
    lengths = [sum(math.prod(size) for size in shape) + 1 for shape in sizes]
    totals = [sum(lengths[i] for i in range(len(pack)) if owner(i, size) == rank) for rank in range(size)]
    buffer = torch.zeros(max(totals), device=device)
    mine = [flatten(own[position]) for position in sorted(own)]
    if mine:
        sent = torch.cat(mine)
        buffer[: len(sent)] = sent
    received = [torch.empty_like(buffer) for _ in range(size)]
    dist.all_gather(received, buffer, group=group)
    features, offsets = [], [0] * size
    for position in range(len(pack)):
        rank = owner(position, size)
        flat = received[rank][offsets[rank] : offsets[rank] + lengths[position]]
        offsets[rank] += lengths[position]
        features.append(unflatten(flat, sizes[position]))
    return features
