"""Which pairs are shown: spread over the range of similarity, every reason, the same ones each time."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from phantom_mega.curation.engine.stage import VERDICT
from phantom_mega.curation.report.candidates import (
    candidates_of,
    choose_accepted,
    choose_rejected,
    read_candidates,
    read_rows,
    spread,
)
from phantom_mega.curation.report.reading import Tables
from tests.curation.report.stages import STAGES
from tests.curation.tables import PARTS, write_stage


def pair(name, similarity, reason=None, kind="cross", face=None):
    of = {"pair_id": name, "clip_id": "c", "subject": 0, "crop_id": f"x{name}", "kind": kind}
    return of | {"similarity": similarity, "face_similarity": face, "accepted": reason is None, "reason": reason}


def made(*rows):
    return candidates_of(pa.Table.from_pylist(list(rows), schema=pa.schema([*STAGES["pairs"].columns, *VERDICT])))


def test_values_are_taken_from_end_to_end_evenly():
    values = np.array([0.5, 0.0, 1.0, 0.25, 0.75, 0.01, 0.02, 0.99, np.nan])
    assert values[spread(values, 5)].tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert values[spread(values, 2)].tolist() == [0.0, 1.0]
    assert len(spread(values, 100)) == 8 and len(spread(values, 0)) == 0 and len(spread(np.zeros(0), 3)) == 0


@given(st.lists(st.floats(-1, 1, width=32), max_size=60), st.integers(1, 30))
def test_no_value_is_taken_twice_and_both_ends_are(values, count):
    values = np.array(values, float)
    taken = spread(values, count)
    assert len(set(taken.tolist())) == len(taken) == min(count, len(values))
    assert np.all(np.diff(values[taken]) >= 0)
    if len(values) and count > 1:
        assert values[taken[0]] == values.min() and values[taken[-1]] == values.max()


def test_cross_pairs_are_shown_before_pairs_within_a_clip_and_every_reason_is_shown():
    rows = [pair(f"a{i}", 0.7 + i / 100) for i in range(20)] + [pair("in", 0.9, kind="in")]
    rows += [pair(f"far{i}", i / 100, "too different") for i in range(60)] + [pair("cap", 0.8, "cap of the subject")]
    rows += [pair("odd", 0.99, None) | {"accepted": False}]
    found = made(*rows)
    good, bad = choose_accepted(found, 4), choose_rejected(found, 7)
    assert [rows[i]["pair_id"] for i in good.rows][::3] == ["a0", "a19"] and len(good.rows) == 4
    assert (good.total, good.left_out) == (20, 16)
    reasons = [rows[i]["reason"] for i in bad.rows]
    assert set(reasons) == {"too different", "cap of the subject", None} and (bad.total, bad.left_out) == (62, 57)
    assert choose_accepted(made(pair("in", None, kind="in"), pair("in2", 0.8, kind="in")), 4).rows == [1]
    assert choose_accepted(made(), 4).rows == [] == choose_rejected(made(), 4).rows


def test_rows_are_found_again_by_their_numbers_and_images_may_be_out_of_reach(tmp_path):
    rows = [
        pair(f"p{i:02d}", i / 40, None if i % 2 else "too different", face=0.5 if i == 7 else None) for i in range(40)
    ]
    write_stage(tmp_path, STAGES["pairs"], rows)
    tables = Tables(tmp_path, list(STAGES.values()), PARTS)
    found = read_candidates(tables, {0, 1})
    assert found.accepted.sum() == 20 and np.isfinite(found.face).sum() == 1 and found.readable.all()
    names = [row["pair_id"] for row in read_rows(tables, "pairs", range(40), ["pair_id"])]
    assert sorted(names) == [row["pair_id"] for row in rows] and names != sorted(names), "by part"
    assert [int(name[1:]) / 40 for name in names] == found.similarity.tolist()
    assert [row["pair_id"] for row in read_rows(tables, "pairs", [39, 0, 20], ["pair_id"])] == [
        names[39], names[0], names[20]
    ]  # fmt: skip
    crops = [{"crop_id": row["crop_id"], "clip_id": f"clip {i // 5}"} for i, row in enumerate(rows)]
    write_stage(tmp_path, STAGES["crops"], crops, by="clip_id")
    tables = Tables(tmp_path, list(STAGES.values()), PARTS)
    half = read_candidates(tables, {0})
    there = set(tables.read_part("crops", 0, ["crop_id"], True)["crop_id"].to_pylist())
    shown = [row["crop_id"] for row in read_rows(tables, "pairs", np.flatnonzero(half.readable), ["crop_id"])]
    assert set(shown) == there
    assert 0 < half.readable.sum() < 40 and all(half.readable[row] for row in choose_accepted(half, 40).rows)
    assert choose_accepted(half, 40).total == 20
