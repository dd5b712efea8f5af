"""How a layout cuts tensors; that real runs write the same cuts is tested in tests/reliability/test_layouts.py."""

import pytest
import torch

from phantom_mega.checkpoint.sharding import ModelParallelLayout, Part, split_dim, weight_key
from phantom_mega.config import ModelConfig
from phantom_mega.hf.naming import split_qkv
from tests.checkpoint.helpers import weights

QKV = "blocks.2.visual.linear_qkv.weight"


@pytest.mark.parametrize(
    "key, dim",
    [
        (QKV, 0),
        ("blocks.0.text.linear_qkv.bias", 0),
        ("blocks.0.visual.mlp.linear_fc1.bias", 0),
        ("blocks.0.visual.linear_proj.weight", 1),
        ("optimizer.state.exp_avg_sq.blocks.0.visual.mlp.linear_fc2.weight", 1),
        ("blocks.0.visual.linear_proj.bias", None),
        ("blocks.0.visual.q_layernorm.weight", None),
        ("clip_projector.fc1.weight", None),
        ("timestep_embedder.0.weight", None),
    ],
)
def test_columns_rows_and_whole_tensors(key, dim):
    assert split_dim(key) == dim


def test_optimizer_state_belongs_to_its_weight():
    assert (
        weight_key(f"optimizer.state.exp_avg.{QKV}")
        == weight_key(f"optimizer.state.ema.{QKV}")
        == weight_key(QKV)
        == QKV
    )


@pytest.mark.parametrize("layout", [(1, 1, 1), (2, 1, 1), (4, 2, 1), (2, 4, 1), (1, 2, 2), (2, 2, 4)])
def test_parts_cover_every_tensor_once(layout):
    tensor, pipeline, virtual = layout
    cut = ModelParallelLayout(8, tensor, pipeline, virtual)
    for key, shape in weights(
        ModelConfig(num_layers=8, hidden_size=32, num_attention_heads=4, ffn_hidden_size=64)
    ).items():
        hits = torch.zeros(shape, dtype=torch.int8)
        for part in cut.parts(key, shape):
            assert 0 <= part.rank < cut.ranks and part.rank // tensor == cut.stage(key)
            hits[tuple(slice(start, start + size) for start, size in zip(part.offsets, part.sizes, strict=True))] += 1
        assert (hits == 1).all(), key


def test_blocks_lie_on_stages_as_the_schedules_have_them():
    plain = ModelParallelLayout(8, pipeline=2)
    assert [plain.stage(f"blocks.{i}.x") for i in range(8)] == [0, 0, 0, 0, 1, 1, 1, 1]
    interleaved = ModelParallelLayout(8, pipeline=2, virtual=2)
    assert [interleaved.stage(f"blocks.{i}.x") for i in range(8)] == [0, 0, 1, 1, 0, 0, 1, 1]
    assert plain.stage("visual_embedder.weight") == plain.stage("timestep_embedder.0.bias") == 0
    assert plain.stage("final_proj.weight") == plain.stage("optimizer.state.ema.final_modulation.bias") == 1


def test_a_part_of_qkv_holds_whole_heads():
    heads, head_dim = 4, 2
    fused = torch.arange(heads * 3 * head_dim).view(-1, 1)
    part = ModelParallelLayout(4, tensor=2).parts(QKV, fused.shape)[1]
    assert part == Part(1, (12, 0), (12, 1))
    local = split_qkv(fused[12:], heads // 2)
    for q, whole in zip(local, split_qkv(fused, heads), strict=True):
        assert torch.equal(q, whole[4:])
