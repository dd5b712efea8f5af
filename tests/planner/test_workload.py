"""Packs of a recipe and of a data set: those of the real packer, with the FLOPs of the real layouts."""

import dataclasses

import pytest

from phantom_mega.conditioning.share import owner
from phantom_mega.config import ConditioningConfig, RunConfig
from phantom_mega.config_io import load_run_config
from phantom_mega.errors import UserError
from phantom_mega.flops import forward_flops
from phantom_mega.packs import PackLayout
from phantom_mega.planner.workload import from_index, from_packs, from_recipe
from phantom_mega.windows import WindowSpec
from tests.data.helpers import mixed_data, mixed_index
from tests.planner.test_activations import SHAPES, SMALL


@pytest.fixture(scope="module")
def tiny():
    return load_run_config("tiny_stage1")


def test_a_recipes_packs_keep_its_budgets_its_weights_and_the_given_references(tiny):
    found = from_recipe(tiny, references=2, caption_tokens=20)
    assert all(sum(s.visual_tokens for s in pack) <= tiny.data.seq_length for pack in found.packs)
    assert all(sum(s.text_stream_tokens for s in pack) <= tiny.data.text_seq_length for pack in found.packs)
    shapes = [shape for pack in found.packs for shape in pack]
    assert {(shape.references, shape.text_tokens) for shape in shapes} == {(2, 20)}
    small = sum(shape.frame_tokens < 25 for shape in shapes)  # 64p has 16 tokens a frame, 96p has 36, as often
    assert small / len(shapes) == pytest.approx(0.5, abs=0.1)


def test_ranks_that_share_encoding_wait_for_the_one_whose_samples_take_longest(tiny):
    found = dataclasses.replace(from_recipe(tiny, references=2, caption_tokens=20), encoding=((6.0, 1.0, 2.0, 3.0),))
    assert [found.encoding_share(ranks, 1) for ranks in (1, 2, 4, 8)] == [12.0, 8.0, 6.0, 6.0]
    for ranks in (2, 3):
        shares = [sum(x for i, x in enumerate(found.encoding[0]) if owner(i, ranks) == rank) for rank in range(ranks)]
        assert found.encoding_share(ranks, 5) == 5 * max(shares)
    assert found.mean_encoding == 12.0


def test_longest_takes_the_longest_clip_that_fits(tiny):
    found = from_recipe(tiny, references=1, caption_tokens=20, lengths="longest")
    assert {shape.frames for pack in found.packs for shape in pack} == {5, 3}


def test_flops_are_those_of_the_real_layouts_and_padding_only_adds(tiny):
    found = from_recipe(tiny, references=2, caption_tokens=20)
    model = tiny.model
    for shapes, needed, executed in list(zip(found.packs, found.needed, found.executed))[:3]:
        layout = PackLayout.build(list(shapes), WindowSpec.of(model), model.rope_axes_dim, model.rope_theta)
        assert needed.total == forward_flops(model, layout)
        assert executed.attention >= needed.attention and executed.linear > needed.linear


def test_attention_without_copies_is_spared_what_shared_rows_read_of_each_other_again():
    config = RunConfig(model=dataclasses.replace(SMALL, window_shift="none"))
    config.parallel.attention_backend = "sdpa"
    copied = from_packs([SHAPES], config, "").executed[0].attention
    config.parallel.attention_backend = "triton"
    spared = 0
    for shape in SHAPES:  # windows of 4 latent frames, references among them
        windows = -(-shape.frames // (4 - shape.references))
        shared = shape.reference_tokens + shape.text_stream_tokens
        spared += 4 * SMALL.hidden_size * (windows - 1) * shared**2 * SMALL.num_layers
    assert copied - from_packs([SHAPES], config, "").executed[0].attention == spared > 0


def test_the_worst_pack_is_the_largest_in_every_count(tiny):
    found = from_recipe(tiny, references=2, caption_tokens=20)
    assert found.worst.rows == max(size.rows for size in found.sizes) > min(size.rows for size in found.sizes)


def test_a_replica_that_draws_more_packs_is_waited_for_less(tiny):
    found = from_recipe(tiny, references=2, caption_tokens=20)
    assert found.straggling(1, 4) == 1
    assert found.straggling(16, 1) > found.straggling(16, 8) > 1


def test_an_index_gives_the_packs_of_its_plan(monkeypatch):
    from phantom_mega.data.index import TripletIndex

    config = RunConfig(data=mixed_data(index_path=["/data"]), conditioning=ConditioningConfig(clip_tokens=20))
    index = mixed_index(600)
    monkeypatch.setattr(TripletIndex, "open", lambda paths: index)
    found = from_index(config)
    assert "the plan of /data" in found.origin
    assert {shape.references for pack in found.packs for shape in pack} == {1, 2, 3, 4}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(references=5, caption_tokens=9), r"--references 5 must lie in 0..4"),
        (dict(references=1, caption_tokens=0), "--caption-tokens 0 must be at least 1"),
        (dict(references=1, caption_tokens=9, lengths="short"), "use uniform or longest"),
    ],
)
def test_impossible_samples_are_refused(tiny, arguments, message):
    with pytest.raises(UserError, match=message):
        from_recipe(tiny, **arguments)


def test_a_recipe_of_which_nothing_fits_is_refused(tiny):
    tight = dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, text_seq_length=30))
    with pytest.raises(UserError, match="fits 4 references"):
        from_recipe(tight, references=4, caption_tokens=20)
