"""Parameters that one rank of a layout holds; exact, tested against the real modules.

C: model width, D: head dim, F: MLP width, tp, pp, vpp: tensor, pipeline and virtual pipeline sizes.
"""

from __future__ import annotations

from phantom_mega.config import ModelConfig, ParallelConfig
from phantom_mega.geometry import PATCH
from phantom_mega.parallel_layout import layers_per_chunk


def stage_layers(model: ModelConfig, parallel: ParallelConfig, stage: int) -> list[int]:
    """Numbers of the blocks of a pipeline stage, in the order of `core.mmdit.layer_range`."""
    stages, count = parallel.pipeline_model_parallel_size, layers_per_chunk(model, parallel)
    chunks = parallel.virtual_pipeline_model_parallel_size or 1
    firsts = [(chunk * stages + stage) * count for chunk in range(chunks)]
    return [layer for first in firsts for layer in range(first, first + count)]


def block_linear_parameters(model: ModelConfig, parallel: ParallelConfig, qkv_only: bool = False) -> int:
    """Weights of one stream's matrices in one block on one tensor rank (what FP8 keeps a second time)."""
    C, F, tp = model.hidden_size, model.ffn_hidden_size, parallel.tensor_model_parallel_size
    return (3 * C * C if qkv_only else 4 * C * C + 2 * C * F) // tp


def _stream_block(model: ModelConfig, parallel: ParallelConfig, qkv_only: bool) -> int:
    C, F, tp = model.hidden_size, model.ffn_hidden_size, parallel.tensor_model_parallel_size
    matrices, norms = block_linear_parameters(model, parallel, qkv_only), 2 * (C // model.num_attention_heads)
    if qkv_only:
        return matrices + 3 * C // tp + norms + 2 * C
    # Biases of column-parallel layers are split, those of row-parallel ones are on every tensor rank.
    return matrices + (3 * C + F) // tp + 2 * C + norms + 6 * C


def layer_parameters(model: ModelConfig, parallel: ParallelConfig, layer: int) -> int:
    """Parameters of one block on one tensor rank; the last block's text stream stops after its q, k, v."""
    last = layer == model.num_layers - 1
    return _stream_block(model, parallel, False) + _stream_block(model, parallel, last)


def stage_parameters(model: ModelConfig, parallel: ParallelConfig, stage: int) -> int:
    """Parameters of one rank of a pipeline stage: its blocks, the timestep embedder and modulation heads that every
    chunk has, the embedders on the first stage, the final layer on the last.
    """
    C, patch_dim = model.hidden_size, model.latent_channels * PATCH[1] * PATCH[2]
    total = sum(layer_parameters(model, parallel, layer) for layer in stage_layers(model, parallel, stage))
    condition = model.timestep_dim * C + C + C * C + C + 2 * (6 * C * C + 6 * C)
    total += condition * (parallel.virtual_pipeline_model_parallel_size or 1)
    if stage == 0:
        total += (patch_dim + model.text_dim + model.clip_dim + C) * C + 4 * C
    if stage == parallel.pipeline_model_parallel_size - 1:
        total += 2 * C * C + 2 * C + C * patch_dim + patch_dim
    return total


def model_parameters(model: ModelConfig) -> int:
    """Parameters of the whole model, each once."""
    return stage_parameters(model, ParallelConfig(), 0)
