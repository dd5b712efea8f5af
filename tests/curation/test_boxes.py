"""Which boxes go on: each rule by itself, who is dropped of two that overlap, and what is kept of the dropped."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantom_mega.curation import boxes
from phantom_mega.curation.boxes import BoxSettings, cut_sides, iou, judge, overlaps, problem_of
from tests.curation.tables import write_table
from tests.curation.vlm import run_alone

SUBJECTS = [{"phrase": phrase, "category": category, "appearance": "", "identity": None}
            for phrase, category in (("a man", "human"), ("a dog", "animal"), ("a coat", "clothes"))]  # fmt: skip
A, B = [0.1, 0.1, 0.4, 0.9], [0.6, 0.1, 0.9, 0.9]


def place(subject, box, score=0.9, position=0.5):
    return {"subject": subject, "position": position, "time": 10 * position, "box": list(box), "score": score}


def clip(*detections, width=1000, height=1000):
    return {"clip_id": "c", "width": width, "height": height, "subjects": SUBJECTS, "detections": list(detections)}


def dropped_of(*detections, **settings):
    good, dropped = judge(clip(*detections), BoxSettings(**settings))
    assert len(good) + len(dropped) == len(detections)
    return [(one["subject"], one["reason"]) for one in dropped]


@pytest.mark.parametrize(("reason", "box", "measured", "taken"), [
    ("small", (0.1, 0.1, 0.19, 0.2), 0.009, (0.1, 0.1, 0.201, 0.2)),
    ("few pixels", (0.1, 0.1, 0.163, 0.4), 63, (0.1, 0.1, 0.165, 0.4)),
    ("fills the frame", (0.01, 0.01, 0.99, 0.99), 0.9604, (0.01, 0.01, 0.95, 0.95)),
    ("long and narrow", (0.1, 0.1, 0.9, 0.25), 0.8 / 0.15, (0.1, 0.1, 0.8, 0.25)),
    ("cut off", (0.003, 0.1, 0.5, 0.5), 1, (0.005, 0.1, 0.5, 0.5)),
    ("cut off", (0.1, 0.0, 0.5, 0.5), 1, (0.1, 0.1, 0.5, 1.0)),
    ("cut off", (0.5, 0.0, 1.0, 0.5), 2, (0.1, 0.3, 0.9, 1.0)),
])  # fmt: skip
def test_each_rule_drops_what_is_beyond_it_and_nothing_else(reason, box, measured, taken):
    found = problem_of(box, 1000, 1000, BoxSettings())
    assert found == (reason, pytest.approx(measured)) and problem_of(taken, 1000, 1000, BoxSettings()) is None


def test_edges_that_may_cut_are_a_setting_and_pixels_are_those_of_the_video():
    assert cut_sides([0, 0.1, 0.5, 1], 0.01, True) == 2 and cut_sides([0, 0.1, 0.5, 1], 0.01, False) == 1
    below = (0.1, 0.1, 0.5, 1.0)
    assert problem_of(below, 1000, 1000, BoxSettings(allow_cut_below=False)) == ("cut off", 1)
    assert problem_of((0, 0.1, 0.5, 1.0), 1000, 1000, BoxSettings(max_cut_sides=1)) is None
    assert problem_of(A, 200, 1000, BoxSettings()) == ("few pixels", pytest.approx(60))
    assert problem_of((0.1, 0.1, 0.9, 0.3), 1000, 100, BoxSettings(min_box_side=9))[0] == "long and narrow"


def test_the_best_box_of_a_subject_in_a_frame_is_taken_and_the_others_named():
    low, second = place(0, A, 0.1), place(0, (0.1, 0.1, 0.5, 0.9), 0.5)
    good, dropped = judge(clip(low, second, place(0, B, 0.6), place(0, A, 0.4, 0.95)), BoxSettings())
    assert [(one["position"], one["score"]) for one in good] == [(0.5, 0.6), (0.95, 0.4)]
    assert [(one["reason"], one["measured"]) for one in dropped] == [("not the best box", 0.5), ("low score", 0.1)]
    unknown = judge(clip(place(0, A, None), place(0, (0.1, 0.1, 0.5, 0.9), None)), BoxSettings())
    assert [one["box"] for one in unknown[0]] == [[0.1, 0.1, 0.5, 0.9]], "without scores, the larger one"


def test_two_that_overlap_are_both_dropped_and_only_in_the_frame_where_they_do():
    near = (0.15, 0.1, 0.45, 0.9)
    assert iou(A, near) > 0.5 and dropped_of(place(0, A), place(1, B)) == []
    assert dropped_of(place(0, A), place(1, near)) == [(0, "overlaps another"), (1, "overlaps another")]
    assert dropped_of(place(0, A), place(1, near, position=0.95)) == []
    assert dropped_of(place(0, A), place(1, near), max_overlap=0.8) == []


def test_one_inside_of_another_is_dropped_unless_it_is_worn():
    inside = (0.15, 0.3, 0.35, 0.5)
    assert dropped_of(place(0, A), place(1, inside)) == [(1, "inside another")]
    assert dropped_of(place(0, A), place(2, inside)) == []
    assert dropped_of(place(2, A), place(1, inside)) == [(1, "inside another")], "a dog in a coat is no coat"
    assert dropped_of(place(0, A), place(2, (0.1, 0.15, 0.4, 0.9))) == [(2, "overlaps another")], "a long coat"
    found = overlaps([place(0, A), place(1, inside)], [False, False], BoxSettings())
    assert found == {1: ("inside another", pytest.approx(1.0))}
    assert overlaps([place(0, A), place(1, inside)], [True, True], BoxSettings()) == found, "a tie on a coat"


box = st.tuples(*[st.floats(0, 1)] * 4).map(
    lambda s: [min(s[0], s[2]), min(s[1], s[3]), max(s[0], s[2]) + 1e-3, max(s[1], s[3]) + 1e-3]
)


@given(st.lists(st.builds(place, st.integers(0, 2), box, st.one_of(st.none(), st.floats(0, 1)),
                          st.sampled_from([0.05, 0.5])), max_size=12))  # fmt: skip
def test_every_box_is_good_or_dropped_with_a_reason_and_the_order_does_not_matter(detections):
    good, dropped = judge(clip(*detections), BoxSettings())
    assert (good, dropped) == judge(clip(*detections[::-1]), BoxSettings())
    assert len(good) + len(dropped) == len(detections) and all(one["reason"] for one in dropped)
    frames = [(one["position"], one["subject"]) for one in good]
    assert len(set(frames)) == len(frames)
    for a in good:
        for b in good:
            if a is not b and a["position"] == b["position"]:
                assert iou(a["box"], b["box"]) <= 0.5


def test_a_clip_without_a_good_box_is_rejected_for_the_most_frequent_reason_and_keeps_its_boxes(tmp_path):
    small = (0.1, 0.1, 0.15, 0.15)
    rows = {"good": [place(0, A), place(1, small)], "bad": [place(0, small), place(1, small, 0.1), place(1, small)]}
    write_table(tmp_path, "clips", [{"clip_id": name, "width": 1000, "height": 1000} for name in rows])
    write_table(tmp_path, "subjects", [{"clip_id": name, "subjects": SUBJECTS} for name in rows])
    write_table(tmp_path, "detections", [{"clip_id": name, "detections": found} for name, found in rows.items()])
    found = run_alone(boxes.stage(BoxSettings()), tmp_path)
    assert found["good"]["accepted"] and [one["box"] for one in found["good"]["boxes"]] == [A]
    assert found["good"]["dropped"] == [place(1, small) | {"reason": "small", "measured": pytest.approx(0.0025)}]
    bad = found["bad"]
    assert (bad["reason"], bad["detail"], bad["boxes"]) == ("small", "2 of 3 boxes", [])
    assert [one["reason"] for one in bad["dropped"]] == ["small", "small", "low score"]
