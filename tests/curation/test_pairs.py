"""Which candidates become pairs: the cuts, faces, words, mutual neighbours, caps, and what is kept of the others."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantom_mega.curation.engine.tables import Table
from phantom_mega.curation.pairs import REASONS, PairSettings, open_pairs, stage
from phantom_mega.curation.samples import best_pairs
from phantom_mega.errors import UserError
from tests.curation.tables import PARTS, run_here, write_table
from tests.curation.vectors import table_of, tables_of


def tables(edges, crops=None, shots=None, count=8):
    """Inputs of `pairs`: `edges` are (crop, near crop, similarity, similarity of the faces)."""
    made = tables_of(np.eye(count), crops=crops, shots=shots)
    rows = []
    for i in range(count):
        found = [edge for edge in edges if edge[0] == i]
        rows.append({"crop_id": f"x{i:03d}", "near": [f"x{edge[1]:03d}" for edge in found],
                     "similarity": [edge[2] for edge in found],
                     "face_similarity": [edge[3] if len(edge) > 3 else None for edge in found]})  # fmt: skip
    return {"crops": made["crops"], "clips": made["clips"], "neighbours": table_of("neighbours", rows)}


def make(found, **settings):
    settings = {"in_pairs": "none", "min_similarity": 0.7, "max_similarity": 0.95} | settings
    return open_pairs(PairSettings(**settings))(found).to_pylist()


def short(rows, kind="cross"):
    """(clip, crop) -> reason."""
    found = {(row["clip_id"], row["crop_id"]): row["reason"] for row in rows if row["kind"] == kind}
    assert all(row["accepted"] == (row["reason"] is None) for row in rows)
    return found


def test_pairs_lie_between_the_cuts_which_belong_to_them():
    edges = [(0, 1, 0.6875), (0, 2, 0.75), (0, 3, 0.9375), (0, 4, 0.96875)]
    rows = make(tables(edges), min_similarity=0.75, max_similarity=0.9375)
    assert short(rows) == {
        ("c000", "x001"): "too different", ("c000", "x002"): None, ("c000", "x003"): None,
        ("c000", "x004"): "near duplicate",
    }  # fmt: skip
    assert [row["score"] for row in rows] == [row["similarity"] for row in rows] == [0.6875, 0.75, 0.9375, 0.96875]
    assert rows[0]["pair_id"] == "c000:0:x001" and rows[0]["subject"] == 0


def test_where_both_faces_are_known_they_decide_but_the_same_picture_stays_out():
    edges = [(0, 1, 0.5, 0.6), (0, 2, 0.8, 0.3), (0, 3, 0.98, 0.6), (0, 4, 0.8, 0.97), (0, 5, 0.5), (0, 6, 0.8)]
    rows = make(tables(edges))
    reasons = [None, "face differs", "near duplicate", "near duplicate", "too different", None]
    assert list(short(rows).values()) == reasons
    assert [row["face_similarity"] for row in rows][:2] == pytest.approx([0.6, 0.3])
    assert rows[4]["face_similarity"] is None


def test_the_best_of_a_subjects_crops_counts_for_both_cuts():
    three = {i: {"clip_id": "c000"} for i in range(3)}
    edges = [(0, 5, 0.6), (1, 5, 0.8), (2, 5, 0.5), (0, 6, 0.8), (2, 6, 0.99), (1, 7, 0.8, 0.2), (2, 7, 0.7, 0.8)]
    rows = make(tables(edges, three))
    assert short(rows) == {("c000", "x005"): None, ("c000", "x006"): "near duplicate", ("c000", "x007"): None}
    assert [row["similarity"] for row in rows] == pytest.approx([0.8, 0.99, 0.8])
    other = make(tables(edges, three | {1: {"clip_id": "c000", "subject": 1}}))
    assert {(row["subject"], row["crop_id"]) for row in other if row["accepted"]} == {(1, "x005"), (0, "x007")}


def test_crops_of_the_same_shot_never_pair_even_if_they_are_listed():
    assert make(tables([(0, 1, 0.8), (0, 2, 0.8)], shots={"c000": "s", "c001": "s"}))[0]["crop_id"] == "x002"
    assert make(tables([(0, 1, 0.8)], {1: {"clip_id": "c000"}}), max_similarity=1) == []


def test_phrases_heads_must_agree_when_asked():
    crops = {0: {"phrase": "A grey rabbit"}, 1: {"phrase": "the Rabbit with an apple"}, 2: {"phrase": "a rabbit hole"}}
    edges = [(0, 1, 0.8), (0, 2, 0.8)]
    assert list(short(make(tables(edges, crops))).values()) == [None, None]
    assert list(short(make(tables(edges, crops), same_head=True)).values()) == [None, "other words"]


def test_mutual_neighbours_are_counted_by_subject_not_by_crop():
    crops = {1: {"clip_id": "c001"}, 2: {"clip_id": "c001"}, 3: {"clip_id": "c001"}}  # three crops of one subject
    edges = [(0, 1, 0.9), (0, 2, 0.9), (0, 3, 0.9), (0, 4, 0.85), (1, 0, 0.9), (4, 5, 0.9), (4, 0, 0.85), (5, 4, 0.9)]
    assert {pair for pair, reason in short(make(tables(edges, crops), mutual=1)).items() if reason is None} == {
        ("c000", "x001"), ("c000", "x002"), ("c000", "x003"), ("c001", "x000"), ("c004", "x005"), ("c005", "x004")
    }  # fmt: skip
    assert short(make(tables(edges, crops), mutual=1))["c000", "x004"] == "not mutual"
    assert short(make(tables(edges, crops), mutual=2))["c000", "x004"] is None
    assert short(make(tables([(0, 1, 0.9)]), mutual=9)) == {("c000", "x001"): "not mutual"}
    assert make(tables([]), mutual=1) == []


def test_a_subject_gets_its_best_references_and_a_crop_goes_to_those_it_is_most_like():
    edges = [(0, i, 0.7 + i / 50) for i in range(1, 8)]
    rows = make(tables(edges), max_references_per_subject=3, rejected_kept=9)
    assert [pair[1] for pair, reason in short(rows).items() if reason is None] == ["x005", "x006", "x007"]
    assert set(short(rows).values()) == {None, "cap of the subject"}
    edges = [(i, 7, 0.75 + i / 50) for i in range(6)]
    rows = make(tables(edges), max_uses_per_crop=2)
    assert [pair[0] for pair, reason in short(rows).items() if reason is None] == ["c004", "c005"]
    assert set(short(rows).values()) == {None, "cap of the crop"}


def test_every_subject_gets_one_reference_before_any_gets_two():
    edges = [(0, 7, 0.94), (0, 6, 0.93), (1, 6, 0.8)]
    rows = make(tables(edges), max_uses_per_crop=1)
    assert short(rows) == {("c000", "x007"): None, ("c000", "x006"): "cap of the crop", ("c001", "x006"): None}


def test_pairs_between_two_videos_are_capped_both_ways_together_and_within_one_too():
    crops = {i: {"video_id": "v" if i < 3 else "w" if i < 6 else "u"} for i in range(8)}
    edges = [(0, 3, 0.9), (3, 0, 0.89), (1, 4, 0.88), (0, 1, 0.87), (1, 2, 0.8), (2, 0, 0.75), (0, 6, 0.8)]
    found = short(make(tables(edges, crops), max_pairs_per_video_pair=2))
    assert {pair for pair, reason in found.items() if not reason} == {
        ("c000", "x003"), ("c003", "x000"), ("c000", "x001"), ("c002", "x000"), ("c000", "x006"),
    }  # fmt: skip


def test_rejected_candidates_are_kept_by_subject_and_reason_the_most_similar_first():
    edges = [(0, i, 0.5 + i / 100) for i in range(1, 5)] + [(0, i, 0.99) for i in range(5, 8)]
    rows = make(tables(edges), rejected_kept=2)
    assert short(rows) == {
        ("c000", "x003"): "too different", ("c000", "x004"): "too different", ("c000", "x005"): "near duplicate",
        ("c000", "x006"): "near duplicate",
    }  # fmt: skip
    assert make(tables(edges), rejected_kept=0) == []


def test_in_pairs_are_for_subjects_without_a_cross_pair_for_all_or_for_none():
    crops = {1: {"clip_id": "c000", "width": 300}, 2: {"clip_id": "c000", "subject": 1}}
    found = tables([(0, 3, 0.8)], crops, count=4)
    for how, expected in (("none", set()), ("fallback", {("c000", 1, "x002"), ("c003", 0, "x003")}),
                          ("all", {("c000", 0, "x001"), ("c000", 1, "x002"), ("c003", 0, "x003")})):  # fmt: skip
        rows = [row for row in make(found, in_pairs=how) if row["kind"] == "in"]
        assert {(row["clip_id"], row["subject"], row["crop_id"]) for row in rows} == expected
        assert all(row["accepted"] and row["similarity"] is None for row in rows)
    rows = [row for row in make(found, in_pairs="all") if row["clip_id"] == "c000" and row["accepted"]]
    assert [(row["subject"], row["crop_id"]) for row in best_pairs(rows, 4)] == [(0, "x003"), (1, "x002")]


@given(seed=st.integers(0, 10_000), count=st.integers(1, 12), data=st.data())
def test_whatever_comes_no_rule_is_broken_and_the_order_of_rows_does_not_matter(seed, count, data):
    rng = np.random.default_rng(seed)
    drawn = rng.integers([count, 3, 2], size=(count, 3)).tolist()
    crops = {i: {"clip_id": f"c{a}", "video_id": f"v{b}", "subject": c} for i, (a, b, c) in enumerate(drawn)}
    shots = {f"c{i}": f"s{rng.integers(count)}" for i in range(count)}
    edges = [(int(a), int(b), float(rng.uniform(0.5, 1)), None if rng.random() < 0.5 else float(rng.uniform(0, 1)))
             for a, b in rng.integers(count, size=(30, 2))]  # fmt: skip
    edges = list({edge[:2]: edge for edge in edges if edge[0] != edge[1]}.values())
    settings = {
        "max_references_per_subject": data.draw(st.integers(0, 3)), "max_uses_per_crop": data.draw(st.integers(0, 3)),
        "max_pairs_per_video_pair": data.draw(st.integers(0, 5)), "rejected_kept": data.draw(st.integers(0, 2)),
        "mutual": data.draw(st.integers(0, 3)), "in_pairs": data.draw(st.sampled_from(["none", "all", "fallback"])),
    }  # fmt: skip
    found = tables(edges, crops, shots, count)
    rows = make(found, **settings)
    mixed = {name: table.take(rng.permutation(len(table))) for name, table in found.items()}

    def ordered(rows):
        return sorted(rows, key=lambda row: row["pair_id"])

    assert ordered(make(mixed, **settings)) == ordered(rows)
    assert len({row["pair_id"] for row in rows}) == len(rows)
    good = [row for row in rows if row["accepted"] and row["kind"] == "cross"]
    for row in good:
        assert shots[crops[int(row["crop_id"][1:])]["clip_id"]] != shots[row["clip_id"]]
        assert row["similarity"] <= 0.95 + 1e-6
        known = row["face_similarity"] is not None
        assert (row["face_similarity"] >= 0.45 - 1e-6) if known else (row["similarity"] >= 0.7 - 1e-6)
    for cap, of in ((settings["max_references_per_subject"], ("clip_id", "subject")),
                    (settings["max_uses_per_crop"], ("crop_id",))):  # fmt: skip
        _, counts = np.unique([str([row[name] for name in of]) for row in good], return_counts=True)
        assert not len(counts) or counts.max() <= cap
    for row in rows:
        if row["kind"] == "in":
            assert crops[int(row["crop_id"][1:])]["clip_id"] == row["clip_id"]
    bad = [(row["clip_id"], row["subject"], row["reason"]) for row in rows if not row["accepted"]]
    assert all(bad.count(one) <= settings["rejected_kept"] and one[2] in REASONS for one in bad)


def test_the_stage_keeps_the_verdicts_in_its_table(tmp_path):
    found = tables([(0, 1, 0.8), (0, 2, 0.5), (3, 4, 0.99)], shots={"c005": None})
    for name, table in found.items():
        write_table(tmp_path, name, table.to_pylist())
    reasons = run_here([stage(PairSettings())], tmp_path)
    assert reasons["pairs"] == {"too different": 1, "near duplicate": 1}
    rows = Table(tmp_path, "pairs", PARTS).read().to_pylist()
    assert sum(row["accepted"] for row in rows) == 1 + 7 and {row["detail"] for row in rows} == {None}
    assert sorted(row["score"] for row in rows if row["reason"]) == pytest.approx([0.5, 0.99])


def test_no_crops_give_no_pairs():
    empty = {name: table.slice(0, 0) for name, table in tables([(0, 1, 0.8)]).items()}
    assert make(empty, in_pairs="all") == []
    assert isinstance(open_pairs(PairSettings())(empty), pa.Table)


@pytest.mark.parametrize(("change", "message"), [
    ({"min_similarity": 0.99}, "must not exceed"), ({"in_pairs": "some"}, "use fallback, all or none"),
    ({"max_uses_per_crop": -1}, "max_uses_per_crop=-1"), ({"mutual": -1}, "mutual=-1"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        open_pairs(PairSettings(**change))
