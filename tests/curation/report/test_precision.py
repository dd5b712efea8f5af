"""Precision of cross pairs by labels by hand: counts, Wilson's interval, the curve, and what is mistaken for what."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantom_mega.curation.report.precision import (
    LabelledPair,
    confusions,
    curve_of,
    label_pairs,
    precision_of,
    wilson,
)

UNKNOWN = float("nan")


def test_wilsons_interval_is_that_of_the_formula():
    z, right, total = 1.959963984540054, 9, 10
    centre = (right + z * z / 2) / (total + z * z)
    half = z / (total + z * z) * math.sqrt(right * (total - right) / total + z * z / 4)
    assert wilson(right, total) == pytest.approx((centre - half, centre + half), abs=1e-12)
    assert wilson(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0) and wilson(5, 5)[1] == pytest.approx(1.0)


def test_precision_counts_accepted_pairs_alone():
    pairs = [LabelledPair("a", "a", 0.8), LabelledPair("a", "b", 0.9), LabelledPair("b", "b", 0.8)]
    pairs.append(LabelledPair("a", "b", 0.5, reason="too different"))
    found = precision_of(pairs)
    assert (found.right, found.total, found.value) == (2, 3, 2 / 3)
    assert (found.low, found.high) == wilson(2, 3)
    assert found.line().startswith(
        "2 of 3 cross pairs with labels by hand are right: precision 0.667 (95% interval 0.2"
    )
    assert precision_of([]).line() == "no accepted cross pair has labels on both sides"
    assert math.isnan(precision_of([]).value)


def test_the_curve_goes_over_pairs_that_the_cut_decides_about_and_takes_ties_together():
    pairs = [
        LabelledPair("a", "a", 0.9), LabelledPair("a", "b", 0.8), LabelledPair("a", "a", 0.8),
        LabelledPair("a", "a", 0.6, reason="too different"), LabelledPair("a", "b", 0.5, reason="too different"),
        LabelledPair("a", "a", 0.99, reason="near duplicate"), LabelledPair("a", "a", UNKNOWN),
        LabelledPair("a", "a", 0.1, face=0.7), LabelledPair("a", "b", 0.1, face=0.3, reason="face differs"),
    ]  # fmt: skip
    curve = curve_of(pairs)
    assert curve.cut.tolist() == [0.9, 0.8, 0.6, 0.5]
    assert curve.precision.tolist() == [1.0, 2 / 3, 3 / 4, 3 / 5]
    assert curve.recall.tolist() == [1 / 3, 2 / 3, 1.0, 1.0]
    faces = curve_of(pairs, faces=True)
    assert (faces.cut.tolist(), faces.precision.tolist(), faces.recall.tolist()) == ([0.7, 0.3], [1, 0.5], [1, 1])
    assert all(len(one) == 0 for one in vars(curve_of([])).values())


@given(st.lists(st.tuples(st.integers(0, 10), st.booleans()), min_size=1, max_size=40))
def test_each_point_of_the_curve_is_the_precision_of_a_cut_there(made):
    pairs = [LabelledPair("a", "a" if right else "b", value / 10) for value, right in made]
    curve = curve_of(pairs)
    assert np.all(np.diff(curve.cut) < 0)
    rights = sum(pair.right for pair in pairs)
    for cut, precision, recall in zip(curve.cut, curve.precision, curve.recall, strict=True):
        above = [pair for pair in pairs if pair.similarity >= cut]
        assert precision == pytest.approx(precision_of(above).value)
        assert recall == pytest.approx(sum(pair.right for pair in above) / max(rights, 1))


def test_confusions_say_which_identity_is_taken_for_which():
    pairs = [LabelledPair("a", "b", 0.8)] * 2 + [LabelledPair("b", "a", 0.8), LabelledPair("a", "a", 0.8)]
    pairs += [LabelledPair("b", "a", 0.2, reason="too different")] * 5
    assert confusions(pairs) == [("a", "b", 2), ("b", "a", 1)]


def test_pairs_are_labelled_where_both_sides_have_a_name_and_pairs_within_a_clip_do_not_count():
    row = {"clip_id": "c", "subject": 0, "crop_id": "x", "kind": "cross", "similarity": 0.8, "face_similarity": None,
           "accepted": True, "reason": None}  # fmt: skip
    rows = [
        row, row | {"subject": 1}, row | {"crop_id": "gone"}, row | {"kind": "in"}, row | {"crop_id": "nameless"},
        row | {"accepted": False, "reason": "too different", "similarity": None, "face_similarity": 0.1},
    ]  # fmt: skip
    crops = {"x": ("d", 2), "nameless": ("d", 0)}
    found = label_pairs(pa.Table.from_pylist(rows), {("c", 0): "Ann", ("d", 2): "Ben"}, crops)
    assert [(one.target, one.reference, one.reason) for one in found] == [
        ("Ann", "Ben", None), ("Ann", "Ben", "too different")
    ]  # fmt: skip
    assert found[0].similarity == 0.8 and math.isnan(found[0].face)
    assert math.isnan(found[1].similarity) and found[1].face == 0.1
