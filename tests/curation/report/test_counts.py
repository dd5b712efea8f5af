"""The funnel and the totals, against numbers counted by hand."""

import dataclasses

import pytest

from phantom_mega.curation.config import CURATION
from phantom_mega.curation.engine.part import CRASHED, FAILED, UNAVAILABLE
from phantom_mega.curation.report.counts import MAX_FAILURES, Example, Sums, count_stages, sum_input, sum_samples
from phantom_mega.curation.report.reading import Tables
from phantom_mega.curation.report.summary import count, differences, funnel
from phantom_mega.errors import UserError
from tests.curation.report.stages import STAGES
from tests.curation.tables import PARTS, write_stage


def rejected(reason, score=None, detail=None, **row):
    return row | {"accepted": False, "reason": reason, "score": score, "detail": detail}


def tables(folder):
    return Tables(folder, list(STAGES.values()), PARTS)


def clip(name, seconds, shot="s0", **more):
    return {"clip_id": name, "shot_id": shot, "video_id": "v0", "start": 10.0, "end": 10.0 + seconds} | more


def test_rows_are_counted_by_reason_with_an_example_and_the_hours_that_are_left(tmp_path):
    videos = [{"video_id": "v0", "duration": 5400.0}, {"video_id": "v1", "duration": 1800.0}]
    write_stage(tmp_path, STAGES["videos"], [*videos, rejected("too long", 9e9, video_id="v2", duration=9e9)])
    clips = [clip(f"c{i}", 36.0 * i) for i in range(1, 11)] + [rejected("too short", 0.5, **clip("short", 0.5))]
    write_stage(tmp_path, STAGES["clips"], clips)
    selected = [{"clip_id": f"c{i}"} for i in range(1, 5)]
    selected += [rejected("blurred", 3.5, None, clip_id=f"c{i}") for i in range(5, 10)]
    selected += [rejected("duplicate", None, "c1", clip_id="c10")]
    write_stage(tmp_path, STAGES["selected"], selected)
    found = {counts.stage: counts for counts in count_stages(tables(tmp_path))}
    assert list(found) == ["videos", "clips", "selected"]
    assert found["videos"].hours == pytest.approx(2.0) and found["clips"].hours == pytest.approx(0.55)
    assert found["selected"].hours == pytest.approx(0.1), "1 + 2 + 3 + 4 hundredths"
    one = found["selected"]
    assert (one.accepted, one.rejected, one.failed) == (4, 6, 0) and one.ordered() == [("blurred", 5), ("duplicate", 1)]
    assert one.examples["duplicate"] == Example("c10", None, "c1") and one.examples["blurred"].score == 3.5
    assert sum_input(found.values()) == Sums(videos=2, hours=pytest.approx(2.0), clips=10)


def test_failures_are_kept_with_their_messages_and_no_more_than_can_be_read(tmp_path):
    rows = [rejected(FAILED, None, f"ValueError: {i}", clip_id=f"c{i:03d}") for i in range(50)]
    rows += [rejected(reason, 2, None, clip_id=reason) for reason in (CRASHED, UNAVAILABLE)]
    write_stage(tmp_path, STAGES["captions"], [*rows, rejected("not annotated", clip_id="d"), {"clip_id": "e"}])
    (found,) = count_stages(tables(tmp_path))
    assert found.failed == 52 and found.rejected == 53 and len(found.failures) == MAX_FAILURES
    assert all(example.detail == f"ValueError: {int(example.name[1:])}" for reason, example in found.failures[:5])
    assert found.hours is None, "there is no table of clips"


def test_samples_are_summed_by_split_with_their_videos_shots_and_clips(tmp_path):
    clips = [clip(f"c{i}", 36.0, f"s{i // 2}", video_id=f"v{i // 4}") for i in range(8)]
    write_stage(tmp_path, STAGES["clips"], clips)
    kinds = {"c0": ["cross", "in"], "c1": ["cross"], "c2": ["cross", "cross"], "c4": ["in"], "c5": []}
    samples = [
        {"key": name, "clip_id": name, "video_id": f"v{int(name[1]) // 4}", "start": 0.0, "end": 36.0,
         "split": "train" if name < "c4" else "validation", "references": ["x"] * len(of),
         "sources": [{"kind": kind} for kind in of]}
        for name, of in kinds.items()
    ]  # fmt: skip
    samples.append(rejected("no reference", **samples[0] | {"key": "c7", "clip_id": "c7"}))
    write_stage(tmp_path, STAGES["samples"], samples)
    assert sum_samples(tables(tmp_path)) == {
        "train": Sums(videos=1, hours=pytest.approx(0.03), shots=2, clips=3, samples=3, references=5, cross=4),
        "validation": Sums(videos=1, hours=pytest.approx(0.02), shots=1, clips=2, samples=2, references=1, cross=0),
    }


def test_a_stage_that_has_not_run_to_its_end_is_named_and_left_out(tmp_path):
    folder = tmp_path / "tables"
    write_stage(folder, STAGES["captions"], [{"clip_id": "a", "caption": "x"}])
    write_stage(folder, STAGES["selected"], [{"clip_id": "a"}])
    (folder / "selected/part-00001.parquet").unlink()
    counts = count(tmp_path, list(STAGES.values()), {}, PARTS)
    assert [one.stage for one in counts.stages] == ["captions"]
    assert counts.missing["selected"] == "1 of 2 parts are there" and counts.missing["pairs"] == "has not run"
    assert counts.missing["shards of train"] == "have not been written" and counts.candidates is None
    assert funnel(counts.stages)[1].split() == ["captions", "1", "0"] and counts.precision is None


def test_a_damaged_table_is_named(tmp_path):
    write_stage(tmp_path / "tables", STAGES["selected"], [{"clip_id": "a"}])
    (tmp_path / "tables/selected/part-00000.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"selected/part-00000\.parquet cannot be read"):
        count(tmp_path, list(STAGES.values()), {}, PARTS)


def test_damaged_shards_are_left_out_and_named(tmp_path):
    (tmp_path / "shards/train").mkdir(parents=True)
    (tmp_path / "shards/train/index.parquet").write_bytes(b"no parquet")
    assert "is not a readable parquet file" in count(tmp_path, [], {}, PARTS).missing["shards of train"]


def test_settings_that_differ_are_told_without_passwords():
    config = CURATION.load("default", ["selection.min_sharpness=30"])
    assert differences(config) == [("selection.min_sharpness", "30.0", "5.0")]
    assert differences(config, dataclasses.asdict(config)) == []
    mine = {"a": {"b": 1, "url": "http://me:secret@host/v1"}, "c": 2}
    assert differences(mine, {"a": {"b": 1}}) == [("a.url", "http://…@host/v1", ""), ("c", "2", "")]
    assert len(differences(mine)) == 3 and differences({}) == []
