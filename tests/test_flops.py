"""FLOPs against torch's own counter, on the plain model."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from phantom_mega.config import ModelConfig
from phantom_mega.flops import forward_flops, forward_parts, training_flops
from phantom_mega.geometry import SampleShape
from phantom_mega.hf import PhantomTransformer3DModel

SHAPES = [SampleShape(12, 2, 3, 2, 4, 3), SampleShape(5, 2, 2, 0, 3, 3)]


def counted(shapes, window_frames=9, backward=False):
    config = ModelConfig(
        num_layers=3, hidden_size=64, rope_axes_dim=[4, 6, 6], latent_channels=4, window_frames=window_frames
    )
    fields = {name: value for name, value in vars(config).items() if name != "patch_size"}
    model = PhantomTransformer3DModel(**fields)
    layout = model.layout(shapes)
    draw = lambda *size: torch.randn(*size, requires_grad=backward)  # noqa: E731
    inputs = (
        draw(layout.seq_length, 16), torch.rand(len(shapes)), draw(len(layout.text_index), 384),
        draw(len(layout.clip_index), 64),
    )  # fmt: skip
    # torch counts the mathematical attention, not the fused CPU kernel.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        sample = model(*inputs, layout).sample
        if backward:
            sample.sum().backward()
    return counter.get_total_flops(), config, layout


@pytest.mark.parametrize("window_frames", [9, 4, 0])
def test_forward_flops_equal_what_torch_counts(window_frames):
    total, config, layout = counted(SHAPES, window_frames)
    assert repeated(config, layout) == total


def repeated(config, layout):
    """With what the backend that gathers rows does again in each window."""
    return forward_parts(config, layout.shapes, [grid.plan for grid in layout.windows], repeated=True).total


def test_scores_among_shared_rows_are_needed_once_and_not_in_each_window():
    _, config, layout = counted(SHAPES, window_frames=4)
    again = 0
    for shape, windows in zip(SHAPES, [[6, 7, 6], [2, 2, 2]]):  # of the plain, the shifted, the plain grid
        shared = shape.reference_tokens + shape.text_stream_tokens
        again += sum(4 * config.hidden_size * (count - 1) * shared**2 for count in windows)
    assert repeated(config, layout) - forward_flops(config, layout) == again
    _, config, layout = counted(SHAPES, window_frames=0)
    assert repeated(config, layout) == forward_flops(config, layout)


@pytest.mark.parametrize("window_frames", [9, 4, 0])
def test_so_do_those_of_forward_and_backward(window_frames):
    total, config, layout = counted(SHAPES, window_frames, backward=True)
    # Timesteps want no gradient, so their features get none.
    assert 3 * repeated(config, layout) - 2 * len(SHAPES) * config.timestep_dim * config.hidden_size == total
    assert training_flops(config, layout) == 3 * forward_flops(config, layout)


def test_padding_costs_nothing():
    _, config, layout = counted(SHAPES)
    model = PhantomTransformer3DModel(**{k: v for k, v in vars(config).items() if k != "patch_size"})
    padded = model.layout(SHAPES, seq_length=500, text_seq_length=100)
    assert forward_flops(config, padded) == forward_flops(config, layout)
