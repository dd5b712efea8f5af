"""A few real blocks of a model with their inputs: on a CPU, on a GPU, or as fake tensors of any size."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from phantom_mega.config import ModelConfig, ParallelConfig, PrecisionConfig
from phantom_mega.core.context_parallel import attention
from phantom_mega.core.layers import BlockInputs, Blocks
from phantom_mega.core.parallel_config import transformer_config
from phantom_mega.core.specs import block_spec
from phantom_mega.geometry import SampleShape
from phantom_mega.packs import PackLayout
from phantom_mega.planner import activations as act
from phantom_mega.planner.memory import recomputed_modules
from phantom_mega.planner.workload import PackSizes
from phantom_mega.windows import WindowSpec


@dataclass(frozen=True)
class Slice:
    """Blocks and what they are called with.

    Attributes:
        blocks: of one rank.
        streams: visual and text tokens of this rank, which want gradients.
        arguments: all arguments of a call.
        resident: tensors that are there before the call.
    """

    blocks: Blocks
    streams: tuple[torch.Tensor, torch.Tensor]
    arguments: tuple
    resident: list[torch.Tensor]


def padded(shapes: list[SampleShape], step: int) -> tuple[int, int]:
    """Visual and text-stream tokens of a pack, padded to a multiple of `step` that is not all of them."""
    visual, text = (sum(getattr(s, name) for s in shapes) for name in ("visual_tokens", "text_stream_tokens"))
    return (visual // step + 1) * step, (text // step + 1) * step


def pack(model: ModelConfig, shapes: list[SampleShape], step: int, device: str = "cpu") -> PackLayout:
    """A padded pack."""
    spec = WindowSpec.of(model)
    return PackLayout.build(shapes, spec, model.rope_axes_dim, model.rope_theta, *padded(shapes, step), device)


def build(
    model: ModelConfig, parallel: ParallelConfig, precision: PrecisionConfig, layout: PackLayout, mode=None
) -> Slice:
    """Blocks for a pack; call it, and them, inside of `mode` where they are fake."""
    dtype, C = torch.bfloat16 if precision.bf16 else torch.float32, model.hidden_size
    device = "cuda" if torch.cuda.is_available() and mode is None else "cpu"
    cp = parallel.context_parallel_size
    ranks = cp * (parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1)
    torch.set_default_dtype(dtype)  # what megatron's linears do not get from their configuration
    try:
        config = transformer_config(model, parallel, precision)
        blocks = Blocks(config, block_spec(parallel.transformer_impl), range(model.num_layers))
        blocks = blocks.to(device) if mode is None else blocks
    finally:
        torch.set_default_dtype(torch.float32)
    take = mode.from_tensor if mode else lambda tensor: tensor
    windows = []
    for grid in layout.windows:
        arrays = {name: take(value) for name, value in vars(grid).items() if isinstance(value, torch.Tensor)}
        for name in ("cos", "sin"):  # of this context-parallel rank's tokens
            arrays[name] = arrays[name][: layout.seq_length // cp]
        windows.append(dataclasses.replace(grid, **arrays))
    counts = [layout.seq_length // ranks, layout.text_seq_length // ranks]
    samples = [take(tensor)[:n] for tensor, n in zip((layout.visual_sample, layout.text_sample), counts, strict=True)]
    draw = lambda *size: torch.randn(*size, dtype=dtype, device=device, requires_grad=True)  # noqa: E731
    streams, bases = [draw(n, C) for n in counts], [draw(len(layout.shapes), 6, C) for _ in range(2)]
    inputs = BlockInputs(*samples, tuple(windows), attention(layout, config, parallel.attention_backend))
    arrays = [value for grid in windows for value in vars(grid).values() if isinstance(value, torch.Tensor)]
    resident = [*blocks.parameters(), *streams, *bases, *samples, *arrays]
    return Slice(blocks, tuple(streams), (*streams, *bases, inputs), resident)


def sizes(layout: PackLayout, parity: int) -> PackSizes:
    """Counts of a pack in the blocks of one grid."""
    return PackSizes.of(layout.shapes, [layout.windows[parity].plan], layout.seq_length, layout.text_seq_length)


def planned(
    model: ModelConfig, parallel: ParallelConfig, precision: PrecisionConfig, layout: PackLayout
) -> tuple[float, float]:
    """What the planner says that all blocks keep, and what the last one takes beyond that in the backward pass."""
    modules, kept = recomputed_modules(parallel), 0.0
    for layer in range(model.num_layers):
        local = act.Local.of(model, parallel, sizes(layout, layer % 2), precision)
        kept += act.total(act.layer_saved(local, layer == model.num_layers - 1), modules)
    workspace = act.layer_workspace(local, modules)
    if parallel.recompute_granularity == "full":
        # The block whose backward pass runs keeps everything for a moment; of those before it there are the inputs.
        inputs = act.layer_inputs(local)
        return model.num_layers * inputs, workspace + act.total(act.layer_saved(local, last=False)) - inputs
    return kept, workspace
