"""Context parallelism: which tokens of a pack a rank holds, and how its attention sees all of them.

Between the blocks' attentions a rank has S/cp visual and L/cp text-stream tokens (with sequence parallelism 1/tp of
those). Inside attention an all-to-all moves heads (DeepSpeed-Ulysses, arXiv 2309.14509): each rank has all tokens of
N/(tp cp) heads, so every window is whole on every rank, and nothing goes around a ring. The exchange itself is
`hf.head_parallel`'s, which inference shares.

What a block sends, per rank and pack: q, k and v to the heads' ranks and the outputs back, in two all-to-alls, that is
4 (S + L)/cp x C/tp x (cp - 1)/cp numbers in the forward pass, as many in the backward pass and, where the block is
recomputed, the forward pass's once more. In bf16 a number is 2 bytes.

S: visual tokens of the padded pack, L: its text-stream tokens, C: model width, N: heads, tp and cp: the groups' sizes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from megatron.core import parallel_state
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from phantom_mega.attention import Windows
from phantom_mega.hf.head_parallel import HeadParallel
from phantom_mega.hf.transformer_phantom import joint_attention
from phantom_mega.packs import PackLayout


def _part(length: int, parts: int, index: int) -> slice:
    size = length // parts
    return slice(index * size, (index + 1) * size)


def context_tokens(length: int) -> slice:
    """The tokens, of a sequence of `length`, that this context-parallel rank and its tensor-parallel peers hold."""
    return _part(length, parallel_state.get_context_parallel_world_size(), parallel_state.get_context_parallel_rank())


def rank_tokens(length: int, config: TransformerConfig) -> slice:
    """This rank's tokens between linears: `context_tokens`, or this tensor rank's part with sequence parallelism."""
    context = context_tokens(length)
    if not config.sequence_parallel:
        return context
    size, rank = config.tensor_model_parallel_size, parallel_state.get_tensor_model_parallel_rank()
    part = _part(context.stop - context.start, size, rank)
    return slice(context.start + part.start, context.start + part.stop)


def rotated_windows(layout: PackLayout) -> tuple[Windows, Windows]:
    """Both grids with the rotations of this rank's visual tokens in place of all; their indices count all tokens."""
    if parallel_state.get_context_parallel_world_size() == 1:
        return layout.windows
    tokens = context_tokens(layout.seq_length)
    return tuple(dataclasses.replace(grid, cos=grid.cos[tokens], sin=grid.sin[tokens]) for grid in layout.windows)


def attention(layout: PackLayout, config: TransformerConfig, backend: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """Joint window attention of both streams.

    Args:
        layout: the whole pack's.
        config: of the model.
        backend: a resolved name of `attention.BACKENDS`.

    Returns:
        A function of (q, k, v) of the visual and of the text stream, each [S/cp or L/cp, N/tp, D], and of the windows;
        it gives both streams' outputs of the same shapes. A collective call over context-parallel ranks.
    """
    if config.context_parallel_size == 1:
        return functools.partial(joint_attention, backend=backend)
    heads = config.num_attention_heads // config.tensor_model_parallel_size
    shared = HeadParallel(parallel_state.get_context_parallel_group(), heads)
    counts = dict(visual_count=layout.seq_length, text_count=layout.text_seq_length)
    return functools.partial(shared.attention, backend=backend, **counts)
