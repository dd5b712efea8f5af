"""The megatron model on one rank: equal to the plain one, converted both ways, initialised as adaLN-zero."""

import pytest
import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear

from phantom_mega.config import ParallelConfig, PrecisionConfig
from phantom_mega.core.build import build_model, build_optimizer, wrap_ddp
from phantom_mega.core.convert import core_to_hf, hf_to_core, load_hf
from phantom_mega.core.init import initial_tensor
from phantom_mega.core.mmdit import layer_range
from phantom_mega.core.parallel_config import transformer_config
from phantom_mega.core.schedule import forward_backward
from phantom_mega.core.specs import block_spec, resolve_transformer_impl
from phantom_mega.errors import UserError
from phantom_mega.hf.naming import fuse_qkv, split_qkv
from phantom_mega.packs import PackLayout
from phantom_mega.windows import WindowSpec
from tests.parallel import reference

pytestmark = pytest.mark.usefixtures("single_rank")


def build(**fields):
    return build_model(reference.MODEL, ParallelConfig(**fields), PrecisionConfig(), seed=3)


def loaded(**fields):
    chunks = build(**fields)
    load_hf(chunks, reference.plain_model().state_dict())
    return chunks


def test_outputs_equal_the_plain_model():
    (chunk,), plain = loaded(), reference.plain_model()
    for inputs, _, weight in reference.microbatches():
        expected = plain(inputs.visual, inputs.timestep, inputs.text, inputs.clip, inputs.layout).sample
        torch.testing.assert_close(chunk(inputs)[weight > 0], expected[weight > 0], rtol=1e-5, atol=1e-5)


def test_recompute_changes_no_output_and_no_gradient():
    inputs = reference.microbatches()[0][0]
    results = []
    for fields in ({}, dict(recompute_granularity="full"), dict(recompute_granularity="full", recompute_num_layers=2)):
        (chunk,) = loaded(**fields)
        chunk(inputs).square().sum().backward()
        results.append([param.grad for param in chunk.parameters()])
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_weights_survive_the_way_to_the_plain_model_and_back_to_the_bit():
    expected = reference.plain_model().state_dict()
    back = core_to_hf(loaded())
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in expected.items())
    assert [name for name, tensor in back.items() if not tensor.is_contiguous()] == []


def test_fused_qkv_holds_whole_heads_in_every_contiguous_part():
    q, k, v = (torch.arange(6 * 2).view(6, 2) + 100 * i for i in range(3))  # 3 heads of 2 channels
    fused = fuse_qkv((q, k, v), heads=3)
    assert torch.equal(fused[6:12], torch.cat([q[2:4], k[2:4], v[2:4]]))
    for part, original in zip(split_qkv(fused, heads=3), (q, k, v), strict=True):
        assert torch.equal(part, original)


def test_a_state_dict_of_another_model_is_refused_by_name():
    state, (chunk,) = reference.plain_model().state_dict(), build()
    wrong = {**state, "visual_embedder.weight": torch.zeros(64, 99)}
    with pytest.raises(UserError, match=r"visual_embedder.weight has shape \[64, 99\].*\[64, 16\]"):
        hf_to_core(wrong, chunk)
    del state["blocks.2.text.to_k.bias"]
    with pytest.raises(UserError, match=r"no 'blocks.2.text.to_k.bias'"):
        hf_to_core(state, chunk)


def test_a_new_model_is_the_identity_with_zero_output():
    (chunk,) = build()
    inputs = reference.microbatches()[0][0]
    assert chunk(inputs).abs().max() == 0
    weights = dict(chunk.named_parameters())
    for name, param in weights.items():
        if name.endswith("bias") or "modulation" in name or name.startswith("final"):
            assert param.abs().max() == 0, name
        elif name.endswith("layernorm.weight"):
            assert (param == 1).all(), name
        else:
            assert 0.005 < param.std() < 0.5, name


def test_initial_tensors_depend_on_seed_and_name_only():
    draw = lambda seed, name: initial_tensor(name, [8, 8], seed)  # noqa: E731
    name = "blocks.0.visual.linear_proj.weight"
    assert torch.equal(draw(1, name), draw(1, name))
    assert not torch.equal(draw(1, name), draw(2, name))
    assert not torch.equal(draw(1, name), draw(1, name.replace("0", "1")))


def test_interleaved_chunks_cover_every_layer_once_in_the_order_of_the_pipeline():
    parallel = ParallelConfig(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2)
    config = transformer_config(reference.MODEL, parallel, PrecisionConfig())
    order = [layer_range(config, rank, chunk) for chunk in range(2) for rank in range(2)]
    assert [list(layers) for layers in order] == [[0], [1], [2], [3]]


def test_every_parameter_gets_a_gradient_from_a_pack_without_references():
    (chunk,) = loaded()
    inputs = reference.microbatches()[2][0]
    assert len(inputs.clip) == 0
    chunk(inputs).sum().backward()
    assert [name for name, param in chunk.named_parameters() if param.grad is None] == []


def test_only_matrices_decay():
    chunks = loaded()
    wrapped = wrap_ddp(chunks, chunks[0].config, ParallelConfig())
    (optimizer,) = build_optimizer(wrapped, reference.OPTIMIZER, ParallelConfig(), PrecisionConfig()).chained_optimizers
    for name, param in chunks[0].named_parameters():
        group, _ = optimizer.model_param_group_index_map[param]
        matrix = name.endswith(".weight") and "norm" not in name
        expected = reference.OPTIMIZER.weight_decay if matrix else 0.0
        assert optimizer.optimizer.param_groups[group]["weight_decay"] == expected, name


def test_sample_losses_sum_to_the_loss_of_the_iteration():
    chunks = loaded()
    wrapped = wrap_ddp(chunks, chunks[0].config, ParallelConfig())
    stats = forward_backward(wrapped, reference.microbatches(), chunks[0].config, forward_only=True)
    assert [len(samples.timestep) for samples in stats.samples] == [len(shapes) for shapes in reference.PACKS]
    assert sum(s.loss_sum.sum().item() for s in stats.samples) == pytest.approx(stats.loss_sum, rel=1e-6)
    for samples, shapes in zip(stats.samples, reference.PACKS, strict=True):
        assert samples.tokens.tolist() == [shape.video_tokens for shape in shapes]
    assert stats.num_tokens == sum(shape.video_tokens for shapes in reference.PACKS for shape in shapes)


def test_packs_of_different_padded_sizes_are_refused():
    chunks, (inputs, target, weight) = loaded(), reference.microbatches()[0]
    shorter = PackLayout.build(list(reference.PACKS[0]), WindowSpec(6), [4, 6, 6], 1e4)
    batches = [(inputs, target, weight), (inputs.__class__(**{**vars(inputs), "layout": shorter}), target, weight)]
    with pytest.raises(UserError, match="different padded sizes"):
        forward_backward(chunks, batches, chunks[0].config, forward_only=True)


def test_local_linears_are_chosen_without_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("about machines without a GPU")
    assert resolve_transformer_impl("auto") == "local"
    stream = block_spec("auto").submodules.visual.submodules
    assert (stream.linear_qkv, stream.linear_proj) == (ColumnParallelLinear, RowParallelLinear)
    with pytest.raises(UserError, match="needs a GPU and Transformer Engine"):
        block_spec("transformer_engine")
    with pytest.raises(UserError, match="transformer_impl='apex' is unknown"):
        block_spec("apex")
