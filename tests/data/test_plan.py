"""The plan of packs: budgets, coverage, order, efficiency, and independence of layout and row order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phantom_mega.config import ResolutionConfig
from phantom_mega.data.packing import pack_samples
from phantom_mega.data.plan import PackPlan
from phantom_mega.errors import UserError
from phantom_mega.geometry import latent_frames
from tests.data.helpers import MODEL, make_index, make_triplet, mixed_data, mixed_index

CLIP_TOKENS = 729


@pytest.fixture(scope="module")
def index():
    return mixed_index(1500)


def plan_of(index, seed=7, **overrides):
    return PackPlan(index, mixed_data(**overrides), MODEL, CLIP_TOKENS, seed)


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(1, 20)), min_size=1, max_size=60),
    st.integers(1, 10),
)
def test_packing_uses_every_sample_once_within_both_budgets(sizes, lookahead):
    visual, text = np.array(sizes).T
    packs = pack_samples(visual, text, 50, 20, lookahead)
    assert sorted(i for pack in packs for i in pack) == list(range(len(sizes)))
    assert all(visual[pack].sum() <= 50 and text[pack].sum() <= 20 for pack in map(np.array, packs))


def test_every_eligible_sample_trains_exactly_once_per_epoch(index):
    plan = plan_of(index)
    for epoch in (0, 1):
        rows = [sample.row for pack in plan.packs(epoch) for sample in pack]
        assert len(rows) == len(set(rows)) == plan.report(epoch).samples
        assert len(rows) + sum(plan.report(epoch).left_out.values()) == len(index)


def test_no_pack_is_over_its_budgets(index):
    plan = plan_of(index)
    for pack in plan.packs(0):
        assert sum(sample.shape.visual_tokens for sample in pack) <= plan.data.seq_length
        assert sum(sample.shape.text_stream_tokens for sample in pack) <= plan.data.text_seq_length


@pytest.mark.parametrize("seq_length", [40960, 90112])
def test_packs_of_a_mixed_index_are_filled_to_95_percent(index, seq_length):
    assert plan_of(index, seq_length=seq_length).report(0).efficiency >= 0.95


def test_the_order_is_the_same_for_any_data_parallel_size(index):
    plan = plan_of(index)
    epoch_0 = len(plan.packs(0))
    start, batch = epoch_0 - 6, 12  # over the end of the epoch
    orders = []
    for size in (1, 2, 3, 4):
        ranks = [[plan.locate(start + i)[1] for i in range(rank, batch, size)] for rank in range(size)]
        orders.append([ranks[i % size][i // size] for i in range(batch)])
    assert orders[0] == orders[1] == orders[2] == orders[3]
    assert orders[0] == [*plan.packs(0)[start:], *plan.packs(1)][:batch]


def test_the_plan_is_a_function_of_its_arguments(index):
    assert plan_of(index).packs(1) == plan_of(index).packs(1)
    assert plan_of(index, seed=8).packs(0) != plan_of(index, seed=7).packs(0)
    assert plan_of(index).packs(0) != plan_of(index).packs(1)


def test_draws_belong_to_the_key_not_to_the_row():
    triplets = [make_triplet(f"k{i}", references=4, frames=200, height=720, width=1280) for i in range(40)]
    plans = [plan_of(make_index(order)) for order in (triplets, triplets[::-1])]
    by_key = [
        {s.key: (s.height, s.num_frames, s.frame_indices, s.references) for pack in plan.packs(0) for s in pack}
        for plan in plans
    ]
    keys = [[[s.key for s in pack] for pack in plan.packs(0)] for plan in plans]
    assert by_key[0] == by_key[1] and keys[0] == keys[1]


def test_without_augmentation_every_epoch_repeats_the_draws_of_the_first(index):
    plan = plan_of(index, augment_per_epoch=False)
    content = [
        {s.key: (s.height, s.frame_indices, s.references) for pack in plan.packs(epoch) for s in pack}
        for epoch in (0, 3)
    ]
    assert content[0] == content[1] and {s.epoch for pack in plan.packs(3) for s in pack} == {3}
    augmented = plan_of(index)
    assert {s.key: s.references for p in augmented.packs(0) for s in p} != {
        s.key: s.references for p in augmented.packs(1) for s in p
    }


def test_clips_take_the_longest_length_that_they_fill_and_stay_inside_the_source():
    plan = plan_of(
        make_index([make_triplet("a", frames=60, height=256, width=256), make_triplet("b", frames=1, fps=0.0)])
    )
    samples = {s.key: s for pack in plan.packs(0) for s in pack}
    assert samples["a"].num_frames == 37 and samples["b"].num_frames == 1
    indices = samples["a"].frame_indices
    assert len(indices) == 37 and indices[0] >= 0 and indices[-1] <= 59 and set(np.diff(indices)) == {1}


def test_fast_clips_are_thinned_to_the_frame_rate():
    plan = plan_of(make_index([make_triplet("a", frames=100, fps=60.0, height=256, width=256)]))
    sample = plan.packs(0)[0][0]
    assert sample.num_frames == 37 and set(np.diff(sample.frame_indices)) == {2} and sample.frame_indices[-1] < 100


def test_no_clip_is_upscaled_beyond_the_limit(index):
    plan = plan_of(index)
    heights, widths = index.column("height"), index.column("width")
    for pack in plan.packs(0):
        for sample in pack:
            assert sample.height <= heights[sample.row] and sample.width <= widths[sample.row]


def test_only_allowed_kinds_of_references_are_used():
    triplets = [make_triplet(f"c{i}", references=3, kind="cross") for i in range(5)]
    triplets += [make_triplet(f"i{i}", references=3, kind="in") for i in range(5)]
    plan = plan_of(make_index(triplets), pair_kinds=["cross"])
    for pack in plan.packs(0):
        for sample in pack:
            assert (len(sample.references) > 0) == sample.key.startswith("c")
            assert sample.shape.references == len(sample.references)


def test_room_is_kept_for_the_empty_prompt_that_dropout_swaps_in():
    index = make_index([make_triplet(f"k{i}", references=0, tokens=1, height=256, width=256) for i in range(9)])
    plan = PackPlan(index, mixed_data(text_seq_length=12), MODEL, 1, 0, empty_text_tokens=5)
    assert max(len(pack) for pack in plan.packs(0)) == 2


def test_left_out_rows_are_counted_by_reason():
    triplets = [make_triplet("ok"), make_triplet("tiny", height=64, width=64), make_triplet("uncounted", tokens=0)]
    report = plan_of(make_index(triplets)).report(0)
    assert report.samples == 1 and sum(report.left_out.values()) == 2
    text = str(report)
    assert "too small" in text and "not counted" in text and "1 samples in 1 packs" in text


def test_an_index_without_a_usable_sample_is_refused_with_the_reasons():
    with pytest.raises(UserError, match="too small or too short"):
        plan_of(make_index([make_triplet("tiny", height=64, width=64)]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"resolutions": {}}, "data.resolutions is empty"),
        ({"resolutions": {"64p": ResolutionConfig(4096, [18])}}, "64p.frames: 18 frames is not 4k.1"),
        ({"aspect_ratios": ["wide"]}, "'wide' is not width:height"),
    ],
)
def test_bad_bucket_settings_are_refused(index, overrides, message):
    with pytest.raises(UserError, match=message):
        plan_of(index, **overrides)


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.integers(0, 5))
def test_frame_counts_are_4k_plus_1_for_any_seed_and_epoch(seed, epoch):
    plan = plan_of(mixed_index(30), seed=seed)
    for pack in plan.packs(epoch):
        assert all(latent_frames(sample.num_frames) == sample.shape.frames for sample in pack)
