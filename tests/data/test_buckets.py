"""Buckets: what a row may train at, and what is drawn for it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantom_mega.config import ResolutionConfig
from phantom_mega.data.buckets import (
    BucketTable,
    draw_bucket,
    draw_references,
    draw_start,
    find_candidates,
    frame_offsets,
    frame_step,
)
from phantom_mega.data.hashing import hash_keys
from phantom_mega.errors import UserError
from tests.data.helpers import make_index, make_triplet, mixed_data, mixed_index


def candidates_of(triplets, max_references=4, clip_tokens=16, empty_text=1, **overrides):
    data = mixed_data(**overrides)
    table = BucketTable(data)
    return table, find_candidates(make_index(triplets), data, table, max_references, clip_tokens, empty_text)


def reason_of(triplet, **settings):
    _, found = candidates_of([triplet], **settings)
    return found.reasons[found.reason[0]]


@pytest.mark.parametrize(
    ("size", "aspect"),
    [((720, 1280), "16:9"), ((480, 640), "4:3"), ((512, 512), "1:1"), ((640, 480), "3:4"), ((1280, 720), "9:16"),
     ((270, 1280), "16:9"), ((500, 570), "1:1"), ((500, 585), "4:3")],
)  # fmt: skip
def test_a_clip_takes_the_nearest_aspect_ratio(size, aspect):
    _, found = candidates_of([make_triplet(height=size[0], width=size[1])])
    assert mixed_data().aspect_ratios[found.aspect[0]] == aspect


def test_a_clip_trains_only_where_it_is_large_and_long_enough():
    table, found = candidates_of(
        [make_triplet("big", frames=100, height=720, width=1280), make_triplet("mid", frames=60, height=480, width=854),
         make_triplet("image", frames=1, fps=0.0, height=720, width=1280)]
    )  # fmt: skip
    assert table.names == ["256p", "480p", "720p"]
    assert found.frames.T.tolist() == [[73, 81, 81], [37, 49, 0], [1, 1, 1]]
    _, found = candidates_of([make_triplet(height=480, width=854)], max_upscale=1.5)
    assert (found.frames > 0).all()


@given(
    st.sampled_from([12.0, 23.976, 24.0, 25.0, 29.97, 30.0, 50.0, 60.0, 119.88]), st.integers(37, 400),
    st.integers(0, 99),
)  # fmt: skip
def test_thinned_frames_keep_the_frame_rate_and_stay_inside_the_clip(fps, frames, seed):
    step = float(frame_step(fps, 24.0))
    offsets = frame_offsets(np.arange(37), step)
    fills = offsets[-1] < frames
    _, found = candidates_of([make_triplet(frames=frames, fps=fps, height=256, width=456)])
    assert (found.frames[0, 0] >= 37) == fills
    if fills:
        indices = draw_start(frames, int(offsets[-1]) + 1, hash_keys([str(seed)])[0], (0, 0)) + offsets
        assert indices[0] >= 0 and indices[-1] < frames and (np.diff(indices) >= 1).all()
        assert np.abs(indices - indices[0] - np.arange(37) * max(fps, 24.0) / 24.0).max() <= 0.5


def test_every_start_of_a_clip_is_drawn():
    assert {draw_start(40, 37, key, (0, 0)) for key in hash_keys(map(str, range(100)))} == {0, 1, 2, 3}


def test_left_out_rows_name_the_first_reason():
    good = {"height": 720, "width": 1280, "frames": 100}
    assert reason_of(make_triplet(**good)) == ""
    assert reason_of(make_triplet(**good, references=0)) == ""
    assert "not counted" in reason_of(make_triplet(**good, tokens=0))
    assert "no reference" in reason_of(make_triplet(**good, kind="in"), pair_kinds=["cross"])
    assert "too small" in reason_of(make_triplet(height=100, width=100))
    only_long = {"resolutions": {"256p": ResolutionConfig(256 * 256, [37, 73])}}
    assert "too short" in reason_of(make_triplet(height=720, width=1280, frames=36), **only_long)
    assert "too short" in reason_of(make_triplet(height=720, width=1280, frames=1, fps=0.0), **only_long)
    assert "data.seq_length" in reason_of(make_triplet(height=720, width=1280, frames=37), **only_long, seq_length=2771)
    assert reason_of(make_triplet(height=720, width=1280, frames=37), **only_long, seq_length=2772) == ""
    assert "data.text_seq_length" in reason_of(make_triplet(**good, tokens=12), text_seq_length=27)
    assert reason_of(make_triplet(**good, tokens=12), text_seq_length=28) == ""
    assert "data.text_seq_length" in reason_of(make_triplet(**good, tokens=1), text_seq_length=28, empty_text=13)


def test_a_model_without_references_trains_on_every_kind():
    assert reason_of(make_triplet(kind="in"), pair_kinds=["cross"], max_references=0) == ""


def draw_of(index, data, clip_tokens=16, stream=(0, 0)):
    table = BucketTable(data)
    found = find_candidates(index, data, table, 4, clip_tokens, 1)
    rows = np.flatnonzero(found.reason == 0)
    return table, found, rows, *draw_bucket(table, found, data, rows, index.key_hashes[rows], clip_tokens, stream)


def test_resolutions_are_drawn_by_weight_among_candidates():
    triplets = [make_triplet(f"k{i}", frames=150, height=720, width=1280) for i in range(4000)]
    table, *_, resolution, references = draw_of(make_index(triplets), mixed_data())
    assert np.allclose(np.bincount(resolution) / 4000, table.weights / table.weights.sum(), atol=0.03)
    *_, found, rows, resolution, _ = draw_of(mixed_index(1000), mixed_data())
    assert (found.frames[resolution, rows] > 0).all() and (references == 1).all()


@pytest.mark.parametrize("budget", [{"seq_length": 3 * 252 + 10 * 252}, {"text_seq_length": 12 + 3 * 100 + 99}])
def test_reference_counts_are_drawn_up_to_what_fits(budget):
    data = mixed_data(resolutions={"256p": ResolutionConfig(256 * 256, [37])}, **budget)
    triplets = [make_triplet(f"k{i}", references=4, frames=40, height=720, width=1280) for i in range(600)]
    *_, references = draw_of(make_index(triplets), data, clip_tokens=100)
    assert np.allclose(np.bincount(references)[1:] / 600, 1 / 3, atol=0.06) and references.max() == 3


def test_at_least_min_references_are_drawn_where_a_sample_has_as_many():
    data = mixed_data(min_references=2)
    triplets = [make_triplet(f"k{i}", references=1 + i % 3, frames=40, height=720, width=1280) for i in range(300)]
    _, _, rows, _, references = draw_of(make_index(triplets), data, clip_tokens=1)
    has = 1 + rows % 3
    assert (references[has == 1] == 1).all() and (references[has == 2] == 2).all()
    assert set(references[has == 3]) == {2, 3}


def test_references_are_drawn_with_their_order_from_the_allowed_kinds():
    kinds, drawn = ["in", "cross", "cross", "in", "cross"], set()
    for key in hash_keys(map(str, range(300))):
        drawn.add(draw_references(kinds, ["cross"], 2, key, (0, 0)))
    assert drawn == {(a, b) for a in (1, 2, 4) for b in (1, 2, 4) if a != b}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"resolutions": {}}, "data.resolutions is empty"),
        ({"resolutions": {"64p": ResolutionConfig(4096, [18])}}, "64p.frames: 18 frames is not 4k.1.*17 and 21"),
        ({"resolutions": {"64p": ResolutionConfig(4096, [])}}, "64p.frames is empty"),
        ({"resolutions": {"64p": ResolutionConfig(4096, [1], -1.0)}}, "64p.weight is -1.0"),
        ({"resolutions": {"64p": ResolutionConfig(64, [1])}}, "64p.pixels is 64"),
        ({"aspect_ratios": ["wide"]}, "'wide' is not width:height"),
        ({"aspect_ratios": ["16:0"]}, "'16:0' is not width:height"),
        ({"aspect_ratios": []}, "data.aspect_ratios is empty"),
        ({"pair_kinds": ["self"]}, "data.pair_kinds: .*cross, in"),
    ],
)
def test_wrong_settings_are_refused_by_name(overrides, message):
    with pytest.raises(UserError, match=message):
        candidates_of([make_triplet()], **overrides)


def test_lengths_that_no_pack_can_hold_are_named():
    table = BucketTable(mixed_data())
    (line,) = table.never_fit(78935)
    assert line == "720p x 81 frames takes 78936 visual tokens with one reference (data.seq_length 78935)"
    assert table.never_fit(78936) == []
