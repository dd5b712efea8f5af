"""Statistics of the paper's Figure 11, against numbers counted by hand."""

import pyarrow as pa
import pytest

from phantom_mega.curation.report.reading import Tables
from phantom_mega.curation.report.statistics import gather, kinds_by_category, ratio_of, words
from phantom_mega.data.index import SCHEMA, TripletIndex
from tests.curation.report.stages import STAGES
from tests.curation.tables import PARTS, write_stage


@pytest.mark.parametrize(
    ("size", "name"),
    [((1920, 1080), "16:9"), ((1280, 716), "16:9"), ((1080, 1920), "9:16"), ((640, 480), "4:3"), ((512, 512), "1:1"),
     ((1280, 544), "21:9"), ((999, 100), "other"), ((0, 0), "other")],
)  # fmt: skip
def test_sizes_are_told_by_their_common_ratio(size, name):
    assert ratio_of(*size) == name


def test_words_of_captions_are_counted_and_nulls_passed_over():
    assert words(pa.chunked_array([["a  b\nc", "", None, "日本 語"]])).tolist() == [3, 0, 2]


def test_references_are_counted_by_category_and_kind():
    lists = [
        [{"category": "human", "kind": "cross"}, {"category": "human", "kind": "in"}], [], None,
        [{"category": "human", "kind": "cross"}, {"category": "animal", "kind": None}],
    ]  # fmt: skip
    found = kinds_by_category(pa.chunked_array([lists]))
    assert found == {("human", "cross"): 2, ("human", "in"): 1, ("animal", "unknown"): 1}


def clip(name, length, **more):
    return {"clip_id": name, "start": 1.0, "end": 1.0 + length, "width": 640, "height": 480} | more


def test_tables_are_counted_whatever_part_a_row_lies_in(tmp_path):
    subject = {"phrase": "x", "category": "human"}
    rows = {
        "clips": [clip("a", 2.0), clip("b", 4.0, width=1280, height=720), clip("c", 9.0, accepted=False)],
        "subjects": [{"clip_id": "a", "subjects": [subject, subject | {"category": "animal"}]},
                     {"clip_id": "b", "subjects": [subject]}, {"clip_id": "d", "subjects": []},
                     {"clip_id": "c", "subjects": [subject] * 4, "accepted": False}],
        "captions": [{"clip_id": "a", "caption": "one two"}, {"clip_id": "b", "caption": "one"}],
        "boxes": [
            {"clip_id": "a", "boxes": [{"subject": 0}, {"subject": 1}],
             "dropped": [{"reason": "too small"}, {"reason": "overlaps"}]},
            {"clip_id": "b", "boxes": [], "dropped": [{"reason": "too small"}], "accepted": False,
             "reason": "no box"},
        ],
    }  # fmt: skip
    for name, made in rows.items():
        write_stage(tmp_path, STAGES[name], made)
    found = gather(Tables(tmp_path, list(STAGES.values()), PARTS), [])
    assert found.subjects_per_clip == {2: 1, 1: 1, 0: 1} and found.categories == {"human": 2, "animal": 1}
    assert sorted(found.durations.tolist()) == [2.0, 4.0] and found.durations_of == "all of them"
    assert found.sizes == {(640, 480): 1, (1280, 720): 1} and found.ratios == {"4:3": 1, "16:9": 1}
    assert sorted(found.caption_words.tolist()) == [1, 2]
    assert found.boxes_kept == 2 and found.boxes_dropped == {"too small": 2, "overlaps": 1}
    assert not found.kinds and not found.references_per_sample


def test_samples_and_shards_are_told_rather_than_clips(tmp_path):
    write_stage(tmp_path, STAGES["clips"], [clip("a", 2.0), clip("b", 4.0)])
    source = {"category": "product", "kind": "cross"}
    sample = {"key": "k", "clip_id": "a", "start": 0.0, "end": 3.0, "caption": "one two three"}
    made = [sample | {"references": ["x"], "sources": [source]},
            sample | {"key": "l", "end": 50.0, "references": [], "sources": [], "accepted": False}]  # fmt: skip
    write_stage(tmp_path, STAGES["samples"], made)
    index = {"key": "k", "shard": "s", "offset": 0, "bytes": 1, "clip_bytes": 1, "frames": 9, "fps": 3.0, "height": 90,
             "width": 160, "text_tokens": 1, "references": []}  # fmt: skip
    indexes = [TripletIndex(pa.Table.from_pylist([index, index], schema=SCHEMA))]
    found = gather(Tables(tmp_path, list(STAGES.values()), PARTS), indexes)
    assert found.durations.tolist() == [3.0] and found.durations_of == "those of samples"
    assert found.sizes == {(160, 90): 2} and found.sizes_of == "those of written samples"
    assert found.caption_words.tolist() == [3] and found.references_per_sample == {1: 1}
    assert found.kinds == {("product", "cross"): 1}
