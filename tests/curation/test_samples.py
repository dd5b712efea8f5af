"""Which clips become samples: the best reference of each subject, and no source video on both sides of the split."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantom_mega.curation.samples import (
    COLUMNS,
    INPUTS,
    SampleSettings,
    best_pairs,
    frame_number,
    make_samples,
    open_samples,
    sample_key,
    split_videos,
)
from phantom_mega.data.schema import KEY_PATTERN
from phantom_mega.errors import UserError


def pair(subject, crop, kind="cross", similarity=0.8, clip="c0"):
    return {
        "pair_id": f"{clip}-{subject}-{crop}", "clip_id": clip, "subject": subject, "crop_id": crop, "kind": kind,
        "similarity": similarity,
    }  # fmt: skip


def tables(videos, pairs, crops, subjects=("a man", "a car", "a dog", "a hat", "a bus")):
    """Tables of one clip a video, `c0` of the first."""
    clips = [
        {"clip_id": f"c{i}", "video_id": video, "path": f"/{video}.mp4", "start": 1.0, "end": 3.0, "fps": 25.0,
         "width": 640, "height": 360}
        for i, video in enumerate(videos)
    ]  # fmt: skip
    rows = {
        "clips": clips,
        "selected": [{"clip_id": clip["clip_id"]} for clip in clips],
        "captions": [{"clip_id": clip["clip_id"], "caption": f"of {clip['clip_id']}"} for clip in clips],
        "subjects": [
            {"clip_id": clip["clip_id"], "subjects": [{"phrase": name, "category": "others"} for name in subjects]}
            for clip in clips
        ],
        "crops": [
            {"crop_id": name, "clip_id": f"c{i}", "video_id": videos[i], "time": 2.0, "box": [0.25, 0.5, 0.5, 1.0]}
            for name, i in crops.items()
        ],
        "pairs": pairs,
    }
    empty = {"pairs": pair(0, ""), "crops": {"crop_id": "", "clip_id": "", "video_id": "", "time": 0.0, "box": [0.0]}}
    found = {name: pa.Table.from_pylist(made or [empty[name]]).select(INPUTS[name]) for name, made in rows.items()}
    return {name: table if rows[name] else table.slice(0, 0) for name, table in found.items()}


def only(rows, clip="c0"):
    return next(row for row in rows if row["clip_id"] == clip)


def test_the_best_pair_of_each_subject_is_taken_and_cross_comes_before_in():
    pairs = [
        pair(1, "in_close", "in", 0.99), pair(1, "cross_far", "cross", 0.6), pair(1, "cross_near", "cross", 0.7),
        pair(0, "in_only", "in", 0.9), pair(2, "cross_near", "cross", 0.65), pair(2, "other", "cross", 0.61),
    ]  # fmt: skip
    assert [one["crop_id"] for one in best_pairs(pairs, 4)] == ["in_only", "cross_near", "other"]
    assert [one["crop_id"] for one in best_pairs(pairs, 2)] == ["cross_near", "other"]
    assert best_pairs([], 4) == [] == best_pairs(pairs, 0)
    assert best_pairs(reversed(pairs), 4) == best_pairs(pairs, 4)


def test_cross_pairs_are_drawn_evenly_whatever_their_similarity_and_the_same_each_time():
    pairs = [pair(0, f"x{i}", similarity=0.9 - i / 100) for i in range(4)] + [pair(0, "own", "in", 1.0)]
    drawn = [best_pairs(pairs, 1, seed)[0]["crop_id"] for seed in range(400)]
    assert {name: 70 < drawn.count(name) < 130 for name in sorted(set(drawn))} == {f"x{i}": True for i in range(4)}
    assert best_pairs(reversed(pairs), 1, 7) == best_pairs(pairs, 1, 7)
    several = tables(["v", "w"], [pair(0, f"x{i}", similarity=0.9 - i / 100) for i in range(4)],
                     {f"x{i}": 1 for i in range(4)})  # fmt: skip
    choose = {"validation_fraction": 0}
    found = {only(make_samples(several, SampleSettings(seed=seed, **choose)))["references"][0] for seed in range(40)}
    assert found == {f"x{i}" for i in range(4)}
    nearest = SampleSettings(reference_choice="most_similar", seed=3, **choose)
    assert only(make_samples(several, nearest))["references"] == ["x0"]


def test_a_sample_says_where_its_references_come_from_in_pixels_and_frames():
    rows = make_samples(tables(["v", "w"], [pair(1, "x")], {"x": 1}), SampleSettings(validation_fraction=0))
    row = only(rows)
    assert (row["key"], row["split"], row["caption"]) == (sample_key("c0"), "train", "of c0")
    assert (row["path"], row["start"], row["end"], row["references"]) == ("/v.mp4", 1.0, 3.0, ["x"])
    assert row["sources"] == [
        {"phrase": "a car", "category": "others", "kind": "cross", "video_id": "w", "frame": 50,
         "box": [160.0, 180.0, 320.0, 360.0]}
    ]  # fmt: skip
    assert set(row) <= {field.name for field in COLUMNS} | {"accepted", "reason", "score", "detail"}
    assert only(rows, "c1")["reason"] == "no reference"


def test_clips_without_reference_are_kept_when_asked():
    rows = make_samples(tables(["v"], [], {}), SampleSettings(keep_without_reference=True))
    assert only(rows)["accepted"] and only(rows)["references"] == []


@given(
    count=st.integers(2, 12),
    links=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=20),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 5),
)
def test_no_source_video_is_ever_on_both_sides(count, links, fraction, seed):
    videos = [f"v{i // 2}" for i in range(count)]  # two clips of each video
    links = [(a % count, b % count) for a, b in links]
    pairs = [pair(n % 5, f"x{n}", clip=f"c{a}") for n, (a, _) in enumerate(links)]
    crops = {f"x{n}": b for n, (_, b) in enumerate(links)}
    rows = make_samples(tables(videos, pairs, crops), SampleSettings(validation_fraction=fraction, seed=seed))
    assert len(rows) == count
    sides = {}
    for row in rows:
        for video in [row["video_id"], *(source["video_id"] for source in row["sources"])]:
            assert sides.setdefault(video, row["split"]) == row["split"]
    for row in rows:
        if row["reason"] == "references in the other split":
            assert any(f"c{a}" == row["clip_id"] for a, _ in links) and not row["references"]


def test_the_split_is_of_the_asked_size_moves_no_video_when_others_come_and_takes_named_ones():
    names = [f"video {i}" for i in range(4000)]
    few, many = split_videos(names[:100], SampleSettings(validation_fraction=0.1)), None
    many = split_videos(names, SampleSettings(validation_fraction=0.1))
    assert few == {name: many[name] for name in names[:100]}
    assert 330 < sum(side == "validation" for side in many.values()) < 470
    assert split_videos(names, SampleSettings(validation_fraction=0.1, seed=1)) != many
    named = split_videos(names[:9], SampleSettings(validation_fraction=0, validation_videos=["video 3"]))
    assert [name for name, side in named.items() if side == "validation"] == ["video 3"]


@pytest.mark.parametrize("name", ["a/b/../c", "", "día 1/日本.mp4_003", "--force", "x" * 500, "a;rm -rf *\n"])
def test_any_clip_gets_a_key_of_its_own(name):
    import re

    assert re.fullmatch(KEY_PATTERN, sample_key(name))
    assert sample_key(name) == sample_key(name) != sample_key(name + " ")


def test_a_frames_number_is_found_from_its_rounded_time():
    for fps in (23.976, 25.0, 29.97, 60.0):
        assert all(frame_number(round(i / fps, 3), fps) == i for i in range(3000))
        assert all(frame_number((i + 0.5) / fps, fps) == i for i in range(3000))


def test_pairs_that_name_what_is_not_there_are_passed_over():
    rows = make_samples(tables(["v", "w"], [pair(9, "x"), pair(0, "gone")], {"x": 1}), SampleSettings())
    assert only(rows)["reason"] == "no reference"


@pytest.mark.parametrize("settings", [{"max_references": 5}, {"validation_fraction": 1.5}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        open_samples(SampleSettings(**settings))
