"""The table of what blocks keep against what autograd keeps of real blocks, and the peak of their backward pass."""

import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from phantom_mega import attention
from phantom_mega.config import ModelConfig, ParallelConfig, PrecisionConfig
from phantom_mega.config_io import load_run_config
from phantom_mega.geometry import SampleShape
from phantom_mega.planner import activations as act
from tests.planner import slices
from tests.planner.measured import OneCall, Storages

SMALL = ModelConfig(
    num_layers=2, hidden_size=64, num_attention_heads=4, ffn_hidden_size=192, rope_axes_dim=[4, 6, 6], window_frames=4
)
# Two heads or more on every rank: with one, the exchange of heads back is a view.
HEADS = dataclasses.replace(SMALL, num_attention_heads=8, rope_axes_dim=[4, 2, 2])
WIDE = dataclasses.replace(SMALL, hidden_size=96, ffn_hidden_size=256, rope_axes_dim=[8, 8, 8])
SHAPES = [SampleShape(9, 2, 3, 2, 5, 3), SampleShape(1, 3, 2, 1, 4, 3), SampleShape(6, 2, 2, 0, 3, 3)]
BF16, FP32 = PrecisionConfig(bf16=True), PrecisionConfig()
# 720p x 121 frames: 31 latent frames of 45 x 80 tokens.
LARGE = SampleShape(31, 45, 80, 4, 512, 729)
RECOMPUTED = {
    "nothing": {},
    "default": dict(recompute_granularity="selective"),
    "norms": dict(recompute_granularity="selective", recompute_modules=["layernorm"]),
    "mlp": dict(recompute_granularity="selective", recompute_modules=["mlp"]),
    "attention": dict(recompute_granularity="selective", recompute_modules=["mlp_act", "core_attn"]),
    "most": dict(recompute_granularity="selective", recompute_modules=["layernorm", "mlp", "core_attn"]),
}


def kept(slice_: slices.Slice) -> int:
    """Bytes that the graph keeps after a forward pass, the blocks' inputs included, their output not."""
    with Storages(slice_.resident) as storages:
        visual, text = slice_.blocks(*slice_.arguments)
        made = storages.live()
    del text  # of the last block: its own input, unless a block before made it
    return made - visual.untyped_storage().nbytes() + sum(stream.nbytes for stream in slice_.streams)


@pytest.mark.parametrize("recomputed", RECOMPUTED)
@pytest.mark.parametrize("model, precision", [(SMALL, BF16), (SMALL, FP32), (WIDE, BF16)])
@pytest.mark.parametrize("backend", ["sdpa", "merged"])
def test_blocks_keep_to_the_byte_what_the_table_says(fake_world, model, precision, backend, recomputed):
    parallel = ParallelConfig(attention_backend=backend, transformer_impl="local", **RECOMPUTED[recomputed])
    layout = slices.pack(model, SHAPES, 16)
    with fake_world(parallel):
        found = kept(slices.build(model, parallel, precision, layout))
    assert found == slices.planned(model, parallel, precision, layout)[0]


@pytest.mark.parametrize("backend", ["sdpa", "merged"])
@pytest.mark.parametrize("recomputed", ["nothing", "most"])
@pytest.mark.parametrize("tp, cp, sequence", [(2, 1, True), (4, 1, True), (2, 1, False), (1, 4, False), (2, 2, True)])
def test_so_do_the_ranks_of_tensor_and_context_parallel_blocks(fake_world, tp, cp, sequence, recomputed, backend):
    parallel = ParallelConfig(
        tensor_model_parallel_size=tp,
        context_parallel_size=cp,
        sequence_parallel=sequence,
        attention_backend=backend,
        transformer_impl="local",
        **RECOMPUTED[recomputed],
    )
    layout = slices.pack(HEADS, SHAPES, 16)
    with fake_world(parallel):
        found = kept(slices.build(HEADS, parallel, BF16, layout))
    # megatron's linears hold a buffer for the tokens that they gather; the planner counts it with the workspace.
    gathered = 2 * layout.seq_length // cp * HEADS.hidden_size if sequence else 0
    assert found - gathered == slices.planned(HEADS, parallel, BF16, layout)[0]


@pytest.mark.parametrize(
    "tp, cp, recomputed",
    [(1, 1, "nothing"), (4, 1, "default"), (4, 1, "most"), (1, 4, "nothing"), (1, 4, "full"), (2, 2, "attention")],
)
def test_four_blocks_of_phantom_7b_at_720p_take_at_their_peak_what_the_planner_says(
    fake_world, monkeypatch, tp, cp, recomputed
):
    """The real blocks at their real size, as tensors without data; fused functions and attention as one kernel each."""
    model = dataclasses.replace(load_run_config("model/phantom_7b").model, num_layers=4)
    parallel = ParallelConfig(
        tensor_model_parallel_size=tp,
        context_parallel_size=cp,
        sequence_parallel=tp > 1,
        attention_backend="varlen",
        transformer_impl="local",
        **(RECOMPUTED | {"full": dict(recompute_granularity="full")})[recomputed],
    )
    layout = slices.pack(model, [LARGE], 256)
    monkeypatch.setitem(
        attention.BACKENDS, "varlen", attention._gathered(lambda q, k, v, windows: OneCall.apply(q, k, v))
    )
    # A fake storage lies nowhere, but is an object of its own.
    monkeypatch.setattr(torch.UntypedStorage, "data_ptr", lambda storage: storage._cdata)
    with fake_world(parallel), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        slice_ = slices.build(model, parallel, BF16, layout, mode)
        storages = Storages(slice_.resident)
        storages.compiled(monkeypatch)
        for parameter in slice_.blocks.parameters():  # as megatron's DDP adds a gradient to its buffer
            parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
        with storages:
            visual, _ = slice_.blocks(*slice_.arguments)
            visual.backward(torch.empty_like(visual))
    saved, workspace = slices.planned(model, parallel, BF16, layout)
    measured = storages.peak + sum(stream.nbytes for stream in slice_.streams) - visual.nbytes
    assert saved + workspace == pytest.approx(measured, rel=0.025), (saved, workspace, measured)


def test_a_recomputed_module_drops_what_is_its_own_alone():
    layout = slices.pack(SMALL, SHAPES, 16)
    local = act.Local.of(SMALL, ParallelConfig(attention_backend="sdpa"), slices.sizes(layout, 0), BF16)
    table = act.layer_saved(local, last=False)
    assert {name for entry in table for name in entry.modules} == {"layernorm", "mlp_act", "mlp", "core_attn"}
    assert act.total(table, ("mlp_act", "mlp")) == act.total(table, ("mlp",)) < act.total(table, ("mlp_act",))


def test_fp8_keeps_inputs_of_linears_in_a_byte_and_recomputes_none_of_them():
    layout, parallel = slices.pack(SMALL, SHAPES, 16), ParallelConfig(attention_backend="sdpa")
    wide, fp8 = (
        act.layer_saved(act.Local.of(SMALL, parallel, slices.sizes(layout, 0), precision), last=False)
        for precision in (BF16, PrecisionConfig(bf16=True, fp8="hybrid"))
    )
    linears = sum(entry.size for entry in wide if entry.operation.startswith("linear"))
    assert act.total(wide) - act.total(fp8) == linears / 2
    assert act.total(fp8, ("layernorm", "mlp_act")) == act.total(fp8)
