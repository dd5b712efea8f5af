"""Which part of each tensor a model-parallel rank holds: the layout of `phantom_mega.core`, as a pure function.

What `core.layers` builds from megatron's ColumnParallelLinear (split along the outputs) and RowParallelLinear (split
along the inputs), and what `core.mmdit.PhantomMMDiT` puts on which pipeline stage, by the keys of a checkpoint. Ranks
are numbered as megatron does within a model replica: tensor ranks next to each other, then pipeline stages.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

# Optimizer state has the shape of its weight and is split alike.
_STATE = re.compile(r"optimizer\.state\.\w+?\.")
_BLOCK = re.compile(r"blocks\.(\d+)\.")
# Dimension that tensor parallelism splits. `linear_qkv` stacks its rows as [heads, 3, head dim]: parts are whole heads.
_SPLIT = (
    (re.compile(r"\.linear_(qkv|fc1)\.(weight|bias)$"), 0),
    (re.compile(r"\.linear_(proj|fc2)\.weight$"), 1),
)
_LAST_STAGE = ("final_modulation.", "final_proj.")


@dataclass(frozen=True)
class Part:
    """What one model-parallel rank holds of a tensor.

    Attributes:
        rank: tensor rank + tensor-parallel size x pipeline stage.
        offsets, sizes: place in the whole tensor, one number per dimension.
    """

    rank: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


def weight_key(key: str) -> str:
    """The weight that a tensor is, or whose state it is (`optimizer.state.<kind>.<weight>`)."""
    return _STATE.sub("", key, count=1) if key.startswith("optimizer.") else key


def split_dim(key: str) -> int | None:
    """Dimension along which tensor parallelism splits a tensor; None for one that every tensor rank holds whole."""
    return next((dim for pattern, dim in _SPLIT if pattern.search(key)), None)


@dataclass(frozen=True)
class ModelParallelLayout:
    """Tensor and pipeline parallelism of one model replica; checked by `core.parallel_config.check_layout`.

    Attributes:
        num_layers: blocks of the model.
        tensor, pipeline: sizes of the groups.
        virtual: chunks of each stage in the interleaved schedule; 1 without it.
    """

    num_layers: int
    tensor: int = 1
    pipeline: int = 1
    virtual: int = 1

    @property
    def ranks(self) -> int:
        """Ranks of one model replica."""
        return self.tensor * self.pipeline

    def stage(self, key: str) -> int:
        """Pipeline stage that writes a tensor: where its block is, else the first or, for the final layer, the last.

        What all stages hold (the timestep embedder and the modulation heads) is the first one's to write.
        """
        name = weight_key(key)
        block = _BLOCK.match(name)
        if block:
            return int(block[1]) // (self.num_layers // (self.pipeline * self.virtual)) % self.pipeline
        return self.pipeline - 1 if name.startswith(_LAST_STAGE) else 0

    def parts(self, key: str, shape: Sequence[int]) -> list[Part]:
        """How a tensor is cut: one part per tensor rank, or one alone where all tensor ranks hold the same.

        Args:
            key: of the checkpoint.
            shape: of the whole tensor; the split dimension is a multiple of the tensor-parallel size.
        """
        first = self.stage(key) * self.tensor
        dim = split_dim(key)
        if dim is None:
            return [Part(first, (0,) * len(shape), tuple(shape))]
        size = shape[dim] // self.tensor
        sizes = tuple(size if d == dim else length for d, length in enumerate(shape))
        return [
            Part(first + rank, tuple(rank * size if d == dim else 0 for d in range(len(shape))), sizes)
            for rank in range(self.tensor)
        ]
