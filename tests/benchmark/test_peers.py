"""Diffusers' stock transformer with this project's weights is the same function, and stays it however it is run."""

import dataclasses

import pytest
import torch

from phantom_mega.benchmark import engines
from phantom_mega.benchmark.cases import relative_error
from phantom_mega.benchmark.peers import same_names
from phantom_mega.benchmark.workload import FULL_ATTENTION, SMALL, layout_of, microbatch
from phantom_mega.config import ParallelConfig, PrecisionConfig
from phantom_mega.core.convert import core_to_hf
from phantom_mega.core.schedule import forward_backward
from phantom_mega.errors import UserError

pytestmark = pytest.mark.usefixtures("single_rank")
CPU = torch.device("cpu")
MODEL = SMALL.model
FP32 = PrecisionConfig()


@pytest.fixture(scope="module")
def peer(single_rank, weights):
    return engines.peer(MODEL, FP32, weights, CPU)


def batch(frames: int, references: int) -> tuple:
    shape = SMALL.shape(frames, references)
    return microbatch(MODEL, shape, layout_of(MODEL, shape, FULL_ATTENTION, CPU))


def expected(plain, inputs) -> torch.Tensor:
    with torch.no_grad():
        return plain(inputs.visual, inputs.timestep, inputs.text, inputs.clip, inputs.layout).sample


@pytest.mark.parametrize("frames, references", [(1, 0), (33, 0), (33, 1), (17, 4)])
def test_the_stock_transformer_gives_the_plain_models_velocity(peer, plain, frames, references):
    peer.chunk.configure(None, None)
    inputs, _, _ = batch(frames, references)
    assert relative_error(peer.forward(inputs), expected(plain, inputs)) < 2e-6


@pytest.mark.parametrize("compiler", [None, "eager"])
@pytest.mark.parametrize("kernel", ["native", "flash"])
def test_without_its_mask_by_another_kernel_and_compiled_it_gives_the_same(peer, plain, kernel, compiler):
    peer.chunk.configure(kernel, compiler)
    inputs, _, _ = batch(17, 1)
    assert relative_error(peer.forward(inputs), expected(plain, inputs)) < 2e-6


def test_the_mask_is_there_in_the_stock_case_alone(peer, monkeypatch):
    from diffusers.models.transformers import transformer_hunyuan_video as stock

    masks, dispatch = [], stock.dispatch_attention_fn
    spy = lambda *args, **kwargs: masks.append(kwargs["attn_mask"]) or dispatch(*args, **kwargs)  # noqa: E731
    monkeypatch.setattr(stock, "dispatch_attention_fn", spy)
    inputs, _, _ = batch(17, 1)
    for kernel in (None, "native"):
        peer.chunk.configure(kernel, None)
        peer.forward(inputs)
    layers = MODEL.num_layers
    assert all(mask.dtype == torch.bool and mask.all() for mask in masks[:layers])
    assert masks[layers:] == [None] * layers


def test_nothing_is_compiled_anew_when_cases_take_turns(peer):
    inputs, _, _ = batch(17, 1)
    ways = [(None, "eager"), ("flash", "eager"), (None, None)]
    for kernel, compiler in ways:
        peer.chunk.configure(kernel, compiler)
        peer.forward(inputs)
    with torch.compiler.set_stance("fail_on_recompile"):
        for kernel, compiler in ways:
            peer.chunk.configure(kernel, compiler)
            peer.forward(inputs)
        peer.chunk.configure(None, "eager")
        with pytest.raises(RuntimeError, match="recompile"):
            peer.forward(batch(13, 1)[0])


def test_every_kind_and_length_is_really_compiled(peer):
    graphs = torch._dynamo.utils.counters["stats"]
    torch._dynamo.reset()
    for frames in (5, 9, 13):
        for kernel in (None, "native", "flash"):
            before = graphs["unique_graphs"]
            peer.chunk.configure(kernel, "eager")
            peer.forward(batch(frames, 0)[0])
            # The last block is another one: its text stream is frozen in part.
            assert graphs["unique_graphs"] == before + 2, (frames, kernel)


def test_gradients_are_the_same_and_those_of_the_adaln_sum_to_ours(single_rank, weights):
    ours, peer = engines.ours(MODEL, ParallelConfig(), FP32, weights), engines.peer(MODEL, FP32, weights, CPU)
    data = batch(33, 1)
    for engine in (ours, peer):
        engine.wrapped[0].zero_grad_buffer()
        forward_backward(engine.wrapped, [data], engine.config)
    own = core_to_hf(ours.wrapped, lambda param: param.main_grad)
    other = {name: param.main_grad for name, param in peer.chunk.transformer.named_parameters() if param.requires_grad}
    names = same_names(MODEL.num_layers)
    assert len(names) > 0.8 * len(other)
    errors = {name: relative_error(other[name], own[plain]) for name, plain in names.items()}
    assert max(errors.values()) < 2e-5, max(errors, key=errors.get)
    for stream, norm in (("visual", "norm1"), ("text", "norm1_context")):
        linears = [f"transformer_blocks.{i}.{norm}.linear" for i in range(MODEL.num_layers)]
        for kind in ("weight", "bias"):
            summed = sum(other[f"{linear}.{kind}"] for linear in linears)
            assert relative_error(summed, own[f"{stream}_modulation.{kind}"]) < 2e-5
        offset = own[f"blocks.0.{stream}.modulation.offset"].flatten()
        assert relative_error(other[f"{linears[0]}.bias"], offset) < 2e-5


def test_what_nothing_reads_is_not_trained(peer):
    peer.chunk.configure(None, None)
    frozen = {name for name, param in peer.chunk.transformer.named_parameters() if not param.requires_grad}
    last = f"transformer_blocks.{MODEL.num_layers - 1}."
    parts = ("attn.to_add_out", "ff_context")
    assert {name for name in frozen if name.startswith("transformer_blocks")} == {
        name for name, _ in peer.chunk.transformer.named_parameters() if name.startswith(tuple(last + p for p in parts))
    }
    assert peer.parameters == sum(p.numel() for p in peer.chunk.parameters()) - sum(
        param.numel() for name, param in peer.chunk.transformer.named_parameters() if name in frozen
    )


def test_sizes_that_the_stock_transformer_has_not_are_refused(weights):
    with pytest.raises(UserError, match="epsilon of 1e-6"):
        engines.peer(dataclasses.replace(MODEL, norm_epsilon=1e-5), FP32, weights, CPU)
