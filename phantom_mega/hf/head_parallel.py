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


def check_ranks(heads: int, ranks: int) -> None:
    """Refuse ranks that cannot share the heads equally.

    Raises:
        UserError: names the nearest number.
    """
    if heads % ranks:
        fit = [size for size in range(1, heads + 1) if heads % size == 0]
        near = min(fit, key=lambda size: abs(size - ranks))
        raise UserError(f"{heads} heads cannot be shared by {ranks} ranks; the nearest number is {near}")


class HeadParallel:
    """What a rank of the group does around the blocks of `PhantomTransformer3DModel`.

    Args:
        group: of torch.distributed; all its ranks call the model with the same inputs.
        heads: attention heads of the model.

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
        """Joint window attention of q, k and v of both streams, each [this rank's tokens, N, D].

        Returns:
            Outputs of this rank's visual and text tokens, [tokens, N, D].
        """
        joint = [
            torch.cat([self._to_heads(v)[:visual_count], self._to_heads(t)[:text_count]])
            for v, t in zip(visual, text, strict=True)
        ]
        attended = window_attention(*joint, windows, backend)
        return tuple(self._to_tokens(part) for part in attended.split([visual_count, text_count]))

    def _to_heads(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens / R, N, D] to [tokens, N / R, D], tokens in order."""
        sent = torch.stack(x.chunk(self.size, dim=1))  # [R, tokens / R, N / R, D], by the heads' rank
        return self._exchange(sent).flatten(0, 1)

    def _to_tokens(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, N / R, D] to [tokens / R, N, D]; zeros fill up the last rank's tokens."""
        count = -(-len(x) // self.size)
        sent = F.pad(x, (0, 0, 0, 0, 0, count * self.size - len(x))).unflatten(0, (self.size, count))
        return torch.cat(self._exchange(sent).unbind(0), dim=1)

    def _exchange(self, sent: torch.Tensor) -> torch.Tensor:
        """Row i of [R, ...] goes to rank i; row i of the result came from it."""
        received = torch.empty_like(sent, memory_format=torch.contiguous_format)
        dist.all_to_all_single(received, sent.contiguous(), group=self.group)
        return received
