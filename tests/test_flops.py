"""FLOPs against torch's own counter, on the plain model."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from phantom_mega.config import ModelConfig
from phantom_mega.flops import forward_flops, training_flops
from phantom_mega.geometry import SampleShape
from phantom_mega.hf import PhantomTransformer3DModel

SHAPES = [SampleShape(12, 2, 3, 2, 4, 3), SampleShape(5, 2, 2, 0, 3, 3)]


def counted(shapes):
    config = ModelConfig(num_layers=3, hidden_size=64, rope_axes_dim=[4, 6, 6], latent_channels=4)
    fields = {name: value for name, value in vars(config).items() if name != "patch_size"}
    model = PhantomTransformer3DModel(**fields)
    layout = model.layout(shapes)
    inputs = (
        torch.randn(layout.seq_length, 16), torch.rand(len(shapes)), torch.randn(len(layout.text_index), 384),
        torch.randn(len(layout.clip_index), 64),
    )  # fmt: skip
    # torch counts the mathematical attention, not the fused CPU kernel.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*inputs, layout)
    return counter.get_total_flops(), config, layout


def test_forward_flops_equal_what_torch_counts():
    total, config, layout = counted(SHAPES)
    assert forward_flops(config, layout) == total


def test_training_needs_three_times_the_forward():
    _, config, layout = counted(SHAPES[:1])
    assert training_flops(config, layout) == 3 * forward_flops(config, layout)


def test_padding_costs_nothing():
    _, config, layout = counted(SHAPES)
    model = PhantomTransformer3DModel(**{k: v for k, v in vars(config).items() if k != "patch_size"})
    padded = model.layout(SHAPES, seq_length=500, text_seq_length=100)
    assert forward_flops(config, padded) == forward_flops(config, layout)
