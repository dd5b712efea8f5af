"""One video over several ranks: tokens are shared out between blocks, heads inside of attention (all-to-all).

As DeepSpeed-Ulysses. Every window's keys are whole on each rank, so windows need no ring and no special case. R: ranks,
N: heads, D: head dim, S: visual tokens, L: text-stream tokens.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.distributed as dist
import torch.nn.functional as F

from phantom_mega.attention import Windows, window_attention
from phantom_mega.errors import UserError
from phantom_mega.packs import PackLayout


def nearest_divisor(number: int, wanted: int) -> int:
    """The divisor of a positive number that is next to another number; the smaller one of two."""
    fit = [size for size in range(1, number + 1) if number % size == 0]
    return min(fit, key=lambda size: abs(size - wanted))


def check_ranks(heads: int, ranks: int) -> None:
    """Refuse ranks that cannot share the heads equally.

    Raises:
        UserError: names the nearest number.
    """
    if heads % ranks:
        raise UserError(
            f"{heads} heads cannot be shared by {ranks} ranks; the nearest number is {nearest_divisor(heads, ranks)}"
        )


class HeadParallel:
    """What a rank of the group does around and inside the blocks; in training, `core.context_parallel` uses it.

    Args:
        group: of torch.distributed; all its ranks call the model with the same inputs.
        heads: attention heads that the ranks share.

    Raises:
        UserError: the heads cannot be shared out equally.
    """

    def __init__(self, group: dist.ProcessGroup, heads: int):
        self.group, self.size, self.rank = group, dist.get_world_size(group), dist.get_rank(group)
        check_ranks(heads, self.size)

    def part(self, tokens: torch.Tensor) -> torch.Tensor:
        """This rank's tokens of [tokens, ...]; zeros fill up the last rank's."""
        count = -(-len(tokens) // self.size)
        mine = tokens[self.rank * count : (self.rank + 1) * count]
        return F.pad(mine, (0, 0) * (tokens.ndim - 1) + (0, count - len(mine)))

    def whole(self, part: torch.Tensor, count: int) -> torch.Tensor:
        """All `count` tokens from every rank's part."""
        parts = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(parts, part.contiguous(), group=self.group)
        return torch.cat(parts)[:count]

    def layout(self, layout: PackLayout) -> PackLayout:
        """The layout with the samples and rotations of this rank's tokens; windows still count all tokens."""
        windows = [dataclasses.replace(w, cos=self.part(w.cos), sin=self.part(w.sin)) for w in layout.windows]
        return dataclasses.replace(
            layout,
            visual_sample=self.part(layout.visual_sample),
            text_sample=self.part(layout.text_sample),
            windows=tuple(windows),
        )

    def attention(
        self, visual: tuple[torch.Tensor, ...], text: tuple[torch.Tensor, ...], windows: Windows, backend: str,
        visual_count: int, text_count: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Joint window attention of q, k and v of both streams, each [this rank's tokens, N, D]; has a gradient.

        Two exchanges in each direction: q, k and v of both streams go to the heads' ranks together, outputs come back.

        Returns:
            Outputs of this rank's visual and text tokens, [tokens, N, D].
        """
        counts = (visual_count, text_count)
        joint = self._to_heads([*zip(visual, text, strict=True)], counts)
        return self._to_tokens(window_attention(*joint, windows, backend), counts)

    def _to_heads(self, pairs: list[tuple[torch.Tensor, torch.Tensor]], counts: tuple[int, int]) -> list[torch.Tensor]:
        """Each (visual [S / R, N, D], text [L / R, N, D]) becomes joint [S + L, N / R, D], tokens in order."""
        # Every part is [R, tokens / R, N / R, D]: by the heads' rank when sent, by the tokens' rank when received.
        sent = [x.unflatten(1, (self.size, -1)).transpose(0, 1) for pair in pairs for x in pair]
        received = self._exchange(torch.cat(sent, dim=1)).split([part.shape[1] for part in sent], dim=1)
        streams = [self._in_order(part, count) for part, count in zip(received, counts * len(pairs), strict=True)]
        return [torch.cat(visual + text) for visual, text in zip(streams[::2], streams[1::2])]

    def _to_tokens(self, joint: torch.Tensor, counts: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Joint [S + L, N / R, D] to visual [S / R, N, D] and text [L / R, N, D]; zeros fill up the last rank's."""
        sent = [self._by_rank(part) for part in joint.split(counts)]
        received = self._exchange(torch.cat(sent, dim=1)).transpose(0, 1).flatten(1, 2)
        return received.split([part.shape[1] for part in sent])

    def _in_order(self, parts: torch.Tensor, count: int) -> list[torch.Tensor]:
        """The pieces, one after another, of `count` tokens that [R, tokens / R, ...] holds with filling."""
        per_rank = parts.shape[1]
        return [part[: max(count - i * per_rank, 0)] for i, part in enumerate(parts.unbind())]

    def _by_rank(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, ...] to [R, tokens / R, ...]; zeros fill up the last rank's."""
        count = -(-len(x) // self.size)
        missing = count * self.size - len(x)
        if missing:
            x = F.pad(x, (0, 0) * (x.ndim - 1) + (0, missing))
        return x.unflatten(0, (self.size, count))

    def _exchange(self, sent: torch.Tensor) -> torch.Tensor:
        """Row i of [R, ...] goes to rank i; row i of the result came from it, and so do gradients, the other way."""
        # Imported late: a release must open where torch was built without distributed, too.
        from torch.distributed.nn.functional import all_to_all_single

        received = torch.empty_like(sent, memory_format=torch.contiguous_format)
        return all_to_all_single(received, sent.contiguous(), group=self.group)
