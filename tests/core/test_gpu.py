"""Kernels that only a GPU has: Transformer Engine's linears and variable-length attention, against fp32 torch."""

import dataclasses

import pytest
import torch

from phantom_mega.config import ParallelConfig, PrecisionConfig
from phantom_mega.core import fused_libraries
from phantom_mega.core.build import build_model, build_optimizer, wrap_ddp
from phantom_mega.core.convert import core_to_hf, load_hf
from phantom_mega.core.schedule import forward_backward
from phantom_mega.core.specs import resolve_transformer_impl
from phantom_mega.packs import PackInputs, PackLayout
from phantom_mega.windows import WindowSpec
from tests.parallel import reference

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("single_rank")]

# Heads of 128 channels, as the presets have: flash attention and Transformer Engine both take them.
MODEL = dataclasses.replace(
    reference.MODEL, hidden_size=256, num_attention_heads=2, ffn_hidden_size=512, rope_axes_dim=[32, 48, 48]
)
SHAPES = reference.PACKS[0]


def batch() -> list:
    """One pack with references, several samples and padding, on the GPU."""
    generator = torch.Generator().manual_seed(0)
    layout = PackLayout.build(
        list(SHAPES), WindowSpec(MODEL.window_frames), MODEL.rope_axes_dim, 1e4, 144, 32, device="cuda"
    )
    draw = lambda *size: torch.randn(*size, generator=generator).cuda()  # noqa: E731
    inputs = PackInputs(
        visual=draw(144, 16),
        timestep=torch.rand(len(SHAPES), generator=generator).cuda(),
        text=draw(len(layout.text_index), MODEL.text_dim),
        clip=draw(len(layout.clip_index), MODEL.clip_dim),
        layout=layout,
    )
    return [(inputs, draw(144, 16), layout.video_mask.float())]


def run(impl: str, backend: str, bf16: bool, weights: dict | None = None):
    """Loss, flat gradient and weights of one step; random weights are drawn where none are given."""
    parallel = ParallelConfig(transformer_impl=impl, attention_backend=backend)
    precision = PrecisionConfig(bf16=bf16)
    chunks = build_model(MODEL, parallel, precision, seed=5)
    if weights is None:
        generator = torch.Generator().manual_seed(1)
        weights = core_to_hf(chunks)
        for tensor in weights.values():
            tensor.add_(0.05 * torch.randn(tensor.shape, generator=generator))
    load_hf(chunks, weights)
    config = chunks[0].config
    wrapped = wrap_ddp(chunks, config, parallel)
    optimizer = build_optimizer(wrapped, reference.OPTIMIZER, parallel, precision)
    wrapped[0].zero_grad_buffer()
    stats = forward_backward(wrapped, batch(), config)
    gradients = core_to_hf(wrapped, lambda param: param.main_grad)
    flat = torch.cat([gradients[name].flatten().float() for name in sorted(gradients)])
    assert optimizer.step()[0]
    return stats.loss, flat, weights


@pytest.mark.parametrize(
    "impl, backend",
    [
        ("local", "sdpa"),
        ("local", "varlen"),
        ("local", "merged"),
        ("local", "merged_cudnn"),
        ("local", "triton"),
        ("transformer_engine", "varlen"),
        ("transformer_engine", "te"),
        ("transformer_engine", "triton"),
    ],
)
def test_bf16_kernels_agree_with_the_fp32_model(impl, backend):
    if impl == "transformer_engine":
        pytest.importorskip("transformer_engine.pytorch")
    loss, gradient, weights = run("local", "sdpa", bf16=False)
    other_loss, other_gradient, _ = run(impl, backend, bf16=True, weights=weights)
    assert other_loss == pytest.approx(loss, rel=0.01)
    assert (other_gradient - gradient).norm() < 0.03 * gradient.norm()


def test_transformer_engine_is_chosen_where_it_is_installed():
    expected = "transformer_engine" if fused_libraries.find().transformer_engine else "local"
    assert resolve_transformer_impl("auto") == expected
