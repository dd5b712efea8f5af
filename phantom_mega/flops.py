"""Floating-point operations of a training step; a multiply-add counts as two.

What a step needs has no padding, no recomputation, and scores among a sample's shared rows once and not in each of its
windows: `forward_flops` and `training_flops`, which logs and benchmarks divide by time, whatever the backend computes.
What a GPU does in that time is more: `forward_parts` also counts padding and repetition, for the planner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from phantom_mega.config import ModelConfig
from phantom_mega.geometry import PATCH, SampleShape
from phantom_mega.packs import PackLayout
from phantom_mega.windows import WindowPlan


@dataclass(frozen=True)
class Flops:
    """FLOPs by what runs them, for they run at different rates.

    Attributes:
        linear: of all matrix products with weights.
        attention: of scores and values.
    """

    linear: float
    attention: float

    @property
    def total(self) -> float:
        """Both."""
        return self.linear + self.attention


def window_flops(plan: WindowPlan, width: int, repeated: bool = False) -> float:
    """FLOPs of one forward pass of attention over all windows: 4 x C for each pair of a query and a key.

    Args:
        plan: of a layer.
        width: C, of all heads.
        repeated: shared rows read each other in every window, as they do where rows are gathered, not once.
    """
    pairs = (np.diff(plan.cu_seqlens).astype(float) ** 2).sum()
    if not repeated:
        pairs -= ((np.diff(plan.cu_windows) - 1.0) * np.diff(plan.cu_shared).astype(float) ** 2).sum()
    return 4.0 * width * float(pairs)


def forward_parts(
    model: ModelConfig,
    shapes: Sequence[SampleShape],
    plans: Sequence[WindowPlan],
    padded: tuple[int, int] | None = None,
    repeated: bool = False,
) -> Flops:
    """FLOPs of one forward pass over a pack.

    Linear layers cost 2 x inputs x outputs a token; attention what `window_flops` says (scores and values). The last
    block's text stream stops after its q, k, v.

    Args:
        model: sizes.
        shapes: samples of the pack.
        plans: of the plain and of the shifted grid.
        padded: (S, L), tokens of both streams with padding, which linear layers compute too; None counts real tokens.
        repeated: as of `window_flops`.
    """
    C, ffn, layers = model.hidden_size, model.ffn_hidden_size, model.num_layers
    caption = sum(shape.text_tokens for shape in shapes)
    clip = sum(shape.references * shape.clip_tokens for shape in shapes)
    visual, text = padded or (sum(shape.visual_tokens for shape in shapes), caption + clip)
    block = 2 * (4 * C * C + 2 * C * ffn)
    blocks = layers * block * visual + (layers - 1) * block * text + 6 * C * C * text
    grids = [window_flops(plan, C, repeated) for plan in plans]
    attention = sum(grids[layer % 2] for layer in range(layers))
    patch_dim = model.latent_channels * PATCH[1] * PATCH[2]
    ends = 2 * C * (2 * patch_dim * visual + model.text_dim * caption + (model.clip_dim + C) * clip)
    condition = 2 * len(shapes) * C * (model.timestep_dim + C + 14 * C)
    return Flops(float(blocks + ends + condition), attention)


def forward_flops(model: ModelConfig, layout: PackLayout) -> float:
    """FLOPs that one forward pass needs: those of the pack's real tokens."""
    return forward_parts(model, layout.shapes, [windows.plan for windows in layout.windows]).total


def training_flops(model: ModelConfig, layout: PackLayout) -> float:
    """FLOPs that forward and backward need: the backward pass needs twice the forward's."""
    return 3 * forward_flops(model, layout)
