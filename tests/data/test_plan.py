"""The plan of packs: budgets, coverage, order, efficiency, and independence of layout and row order."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phantom_mega.data.plan import PackPlan
from phantom_mega.errors import UserError
from phantom_mega.geometry import token_grid
from tests.data.helpers import MODEL, make_index, make_triplet, mixed_data, mixed_index

CLIP_TOKENS = 729


@pytest.fixture(scope="module")
def index():
    return mixed_index(1500)


def plan_of(index, seed=7, **overrides):
    return PackPlan(index, mixed_data(**overrides), MODEL, CLIP_TOKENS, seed)


def draws_of(plan, epoch):
    """What is drawn for every key in an epoch."""
    return {
        sample.key: (sample.height, sample.width, sample.num_frames, sample.frame_indices, sample.references)
        for pack in plan.packs(epoch)
        for sample in pack
    }


triplet_lists = st.lists(
    st.builds(
        dict,
        references=st.integers(0, 4),
        frames=st.sampled_from([1, 30, 60, 100, 300]),
        fps=st.sampled_from([12.0, 24.0, 29.97, 60.0]),
        height=st.sampled_from([200, 256, 480, 720, 1280]),
        width=st.sampled_from([256, 456, 854, 1280]),
        tokens=st.integers(0, 600),
        kind=st.sampled_from(["cross", "in"]),
    ),
    min_size=1,
    max_size=25,
).map(lambda fields: [make_triplet(f"k{i}", **entry) for i, entry in enumerate(fields)])


@settings(max_examples=60)
@given(triplet_lists, st.integers(0, 2**31), st.integers(0, 5), st.sampled_from([["cross"], ["cross", "in"]]))
def test_every_eligible_sample_trains_exactly_once_and_within_all_limits(triplets, seed, epoch, pair_kinds):
    index = make_index(triplets)
    try:
        plan = plan_of(index, seed, pair_kinds=pair_kinds, text_seq_length=3000)
    except UserError as error:
        assert "no sample can be trained on" in str(error)
        return
    samples = [sample for pack in plan.packs(epoch) for sample in pack]
    report = plan.report(epoch)
    assert {s.row for s in samples} == {s.row for pack in plan.packs(epoch + 1) for s in pack}
    assert len({s.row for s in samples}) == len(samples) == report.samples
    assert len(samples) + report.left_out.total() == len(triplets)
    for pack in plan.packs(epoch):
        assert pack and sum(s.shape.visual_tokens for s in pack) <= plan.data.seq_length
        assert sum(s.shape.text_stream_tokens for s in pack) <= plan.data.text_seq_length
    for s in samples:
        source = triplets[s.row]
        assert s.key == source.key and s.epoch == epoch and s.text_tokens == min(source.text_tokens, 256)
        assert s.height <= source.height and s.width <= source.width
        assert len(s.frame_indices) == s.num_frames and 0 <= s.frame_indices[0] <= s.frame_indices[-1] < source.frames
        assert (s.shape.frames, s.shape.height, s.shape.width) == token_grid(s.num_frames, s.height, s.width)
        assert s.shape.references == len(set(s.references)) == len(s.references)
        assert bool(s.references) == bool(source.references)
        assert all(source.references[i].kind in pair_kinds for i in s.references)


@settings(max_examples=30)
@given(triplet_lists, st.randoms(use_true_random=False), st.integers(0, 3))
def test_permuting_the_index_changes_nothing_but_row_numbers(triplets, random, epoch):
    triplets.append(make_triplet("one_good"))
    shuffled = random.sample(triplets, len(triplets))
    plans = [plan_of(make_index(rows)) for rows in (triplets, shuffled)]
    keys = [[[s.key for s in pack] for pack in plan.packs(epoch)] for plan in plans]
    assert keys[0] == keys[1] and draws_of(plans[0], epoch) == draws_of(plans[1], epoch)


def test_draws_of_a_key_do_not_depend_on_other_rows(index):
    alone = plan_of(make_index([make_triplet("x", references=4, frames=200, height=720, width=1280)]))
    others = [make_triplet(f"k{i}") for i in range(20)]
    among = plan_of(make_index([*others, make_triplet("x", references=4, frames=200, height=720, width=1280)]))
    for epoch in range(3):
        assert draws_of(alone, epoch)["x"] == draws_of(among, epoch)["x"]


@pytest.mark.parametrize(
    ("resolutions", "seq_length", "text_seq_length"),
    [(["256p", "480p"], 40960, 16384), (["256p", "480p", "720p"], 90112, 32768)],
    ids=["stage1_256p", "stage2_720p"],
)
def test_packs_of_a_mixed_index_are_filled_to_95_percent(index, resolutions, seq_length, text_seq_length):
    data = mixed_data(seq_length=seq_length, text_seq_length=text_seq_length)
    data.resolutions = {name: data.resolutions[name] for name in resolutions}
    plan = PackPlan(index, data, MODEL, CLIP_TOKENS, 7)
    assert min(plan.report(epoch).efficiency for epoch in range(3)) >= 0.95
    assert {bucket[0] for bucket in plan.report(0).buckets} == set(resolutions)


@settings(max_examples=10)
@given(st.integers(0, 100), st.integers(0, 3))
def test_the_order_is_the_same_for_any_data_parallel_size(start, seed):
    index, batch = mixed_index(60), 12
    orders = []
    for size in (1, 2, 3, 4, 6):
        plan = plan_of(index, seed)  # as each job makes its own
        ranks = [[plan.locate(start + i)[1] for i in range(rank, batch, size)] for rank in range(size)]
        orders.append([ranks[i % size][i // size] for i in range(batch)])
    assert all(order == orders[0] for order in orders)


def test_positions_run_through_all_epochs_without_a_gap(index):
    plan = plan_of(index)
    walked = [(epoch, pack) for epoch in range(3) for pack in plan.packs(epoch)]
    assert [plan.locate(position) for position in range(len(walked))] == walked
    assert len(plan) == len(plan.packs(0))
    with pytest.raises(UserError, match="position -1"):
        plan.locate(-1)


def test_the_plan_is_a_function_of_its_arguments(index):
    plan = plan_of(index)
    assert plan_of(index).packs(1) == plan.packs(1)
    assert plan_of(index, seed=8).packs(0) != plan.packs(0) != plan.packs(1)
    first = [[sample.key for sample in plan.packs(epoch)[0]] for epoch in range(4)]
    assert len({tuple(keys) for keys in first}) == 4


def test_without_augmentation_every_epoch_repeats_the_draws_of_the_first(index):
    plan = plan_of(index, augment_per_epoch=False)
    assert draws_of(plan, 0) == draws_of(plan, 3) == draws_of(plan_of(index), 0)
    assert {sample.epoch for pack in plan.packs(3) for sample in pack} == {3}
    together = [{frozenset(sample.key for sample in pack) for pack in plan.packs(epoch)} for epoch in (0, 3)]
    assert len(together[0] & together[1]) < 0.2 * len(together[0])  # but other samples meet in a pack
    augmented = plan_of(index)
    first, second = draws_of(augmented, 0), draws_of(augmented, 1)
    for part in range(5):
        assert any(first[key][part] != second[key][part] for key in first)


def test_each_epoch_is_planned_once_however_far_the_walk_has_come(index, monkeypatch):
    plan, planned = plan_of(index), []
    original = PackPlan._plan
    monkeypatch.setattr(PackPlan, "_plan", lambda self, epoch: planned.append(epoch) or original(self, epoch))
    length = len(plan)
    for position in range(0, 7 * length, length // 3):
        plan.locate(position)
        plan.locate(max(position - length // 3, 0))  # a step back, maybe over the end of an epoch
    assert planned == list(range(plan.locate(position)[0] + 1)) and len(planned) >= 7


def test_a_resumed_plan_needs_only_the_lengths_of_the_epochs_before(index, monkeypatch):
    plan = plan_of(index)
    position = sum(len(plan.packs(epoch)) for epoch in range(5)) + 3
    expected, state = plan.locate(position), plan.state_dict()
    resumed, planned = plan_of(index), []
    original = PackPlan._plan
    monkeypatch.setattr(PackPlan, "_plan", lambda self, epoch: planned.append(epoch) or original(self, epoch))
    resumed.load_state_dict(state)
    assert resumed.locate(position) == expected and planned == [5]
    other = plan_of(index, seq_length=100_000)
    other.load_state_dict(state)
    assert len(other) == len(other.packs(0)) != state["epoch_lengths"][0]


def test_threads_see_the_same_plan(index):
    plan, found = plan_of(index), {}
    threads = [
        threading.Thread(target=lambda r=r: found.update({p: plan.locate(p) for p in range(r, 1200, 4)}))
        for r in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fresh = plan_of(index)
    assert len(found) == 1200 and all(found[p] == fresh.locate(p) for p in range(0, 1200, 100))


def test_clips_take_the_longest_length_that_they_fill_and_images_one_frame():
    triplets = [make_triplet("a", frames=60, height=256, width=456), make_triplet("b", frames=1, fps=0.0)]
    samples = {s.key: s for pack in plan_of(make_index(triplets)).packs(0) for s in pack}
    assert samples["a"].num_frames == 37 and set(np.diff(samples["a"].frame_indices)) == {1}
    assert samples["b"].num_frames == 1 and samples["b"].frame_indices == (0,)


def test_captions_are_cut_to_max_text_tokens():
    plan = plan_of(make_index([make_triplet(tokens=300), make_triplet("k", tokens=20)]), max_text_tokens=64)
    assert sorted(s.shape.text_tokens for pack in plan.packs(0) for s in pack) == [20, 64]


def test_room_is_kept_for_the_empty_prompt_that_dropout_swaps_in():
    index = make_index([make_triplet(f"k{i}", references=0, tokens=1, height=256, width=456) for i in range(9)])
    plan = PackPlan(index, mixed_data(text_seq_length=12), MODEL, 1, 0, empty_text_tokens=5)
    assert max(len(pack) for pack in plan.packs(0)) == 2
    assert {s.text_tokens for pack in plan.packs(0) for s in pack} == {1}


def test_left_out_rows_are_counted_by_reason():
    triplets = [make_triplet("ok"), make_triplet("tiny", height=64, width=64), make_triplet("uncounted", tokens=0)]
    report = plan_of(make_index(triplets)).report(0)
    assert report.samples == 1 and sorted(report.left_out.values()) == [1, 1]


def test_an_index_without_a_usable_sample_is_refused_with_the_reasons():
    with pytest.raises(UserError, match=r"no sample can be trained on(.|\n)*1  too small for every resolution"):
        plan_of(make_index([make_triplet("tiny", height=64, width=64)]))


@pytest.mark.parametrize("name", ["seq_length", "text_seq_length", "packing_lookahead", "frame_rate"])
def test_budgets_that_are_not_positive_are_refused_by_name(index, name):
    with pytest.raises(UserError, match=f"data.{name} is 0; it must be positive"):
        plan_of(index, **{name: 0})
