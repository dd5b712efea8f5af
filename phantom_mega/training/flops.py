"""Floating-point operations that a training step needs: no padding, no recomputation, a multiply-add counts as two."""

from __future__ import annotations

from phantom_mega.config import ModelConfig
from phantom_mega.geometry import PATCH
from phantom_mega.packs import PackLayout


def forward_flops(model: ModelConfig, layout: PackLayout) -> float:
    """FLOPs of one forward pass over the pack's real tokens.

    Linear layers cost 2 x inputs x outputs a token; attention costs 4 x length^2 x C a window (scores and values).
    The last block's text stream stops after its q, k, v.
    """
    C, ffn, layers = model.hidden_size, model.ffn_hidden_size, model.num_layers
    visual = sum(shape.visual_tokens for shape in layout.shapes)
    text = sum(shape.text_stream_tokens for shape in layout.shapes)
    clip = sum(shape.references * shape.clip_tokens for shape in layout.shapes)
    block = 2 * (4 * C * C + 2 * C * ffn)
    linear = layers * block * visual + (layers - 1) * block * text + 6 * C * C * text
    attention = sum(4 * C * length * length for i in range(layers) for length in layout.windows[i % 2].lengths)
    patch_dim = model.latent_channels * PATCH[1] * PATCH[2]
    ends = 2 * C * (2 * patch_dim * visual + model.text_dim * (text - clip) + (model.clip_dim + C) * clip)
    condition = 2 * len(layout.shapes) * C * (model.timestep_dim + C + 14 * C)
    return float(linear + attention + ends + condition)


def training_flops(model: ModelConfig, layout: PackLayout) -> float:
    """FLOPs of forward and backward: the backward pass needs twice the forward's."""
    return 3 * forward_flops(model, layout)
