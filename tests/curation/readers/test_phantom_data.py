"""Phantom-Data: from its table and a folder of clips to shards, with everything that is wrong named."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phantom_mega.curation import samples, write
from phantom_mega.curation.engine.stage import Rejection
from phantom_mega.curation.engine.tables import Table
from phantom_mega.curation.readers import find_videos, fractions_of
from phantom_mega.curation.readers.phantom_data import PhantomDataSettings, list_clips, read_pairs, reader, source_video
from phantom_mega.curation.samples import SampleSettings, sample_key
from phantom_mega.curation.transcode import TranscodeSettings
from phantom_mega.curation.video import frames_at, to_rgb
from phantom_mega.curation.write import WriteSettings, write_shards
from phantom_mega.errors import UserError
from tests.curation.clips import noise, real, write_video
from tests.curation.tables import PARTS, decode_all, run_here

BIKES, LATER, OTHER = "a1b2_0.00_10.00", "a1b2_20.00_21.60", "ffff_3.5_4.7"


def box(vid, fraction, sides, **more):
    return {"vid": vid, "frame_idx": fraction, "bbox_loc": sides, "bbox_cls": "person", **more}


def rows():
    """The table: bikes is 640 x 272, so that its boxes are in 768 x 326.4 pixels."""
    pairs = {
        "a man in a suit": {
            "obj_from_tgt_video": [box(BIKES, "0.144", [302, 0, 576, 326])],
            "refer_result": [[box(LATER, "0.5", [[0.0, 0.0, 384.0, 216.0]], scores=0.7)]],
        },
        "taxi": {"obj_from_tgt_video": [box(BIKES, 0.288, [102, 126, 588, 270])], "refer_result": []},
        "dog": {"obj_from_tgt_video": [], "refer_result": [[box("gone_1_2", "0.5", [[0, 0, 9, 9]])]]},
        "hat": {"refer_result": [[box(LATER, "0.5", [[0, 0, 981, 9]])], [box(LATER, "x", [[0, 0, 9, 9]])],
                                 [box(LATER, 0.5, [[9, 9]])], ["rubbish"], [box("ffff_3.5_4.7", 0.1, [[0, 0, 9, 9]])]]},
    }  # fmt: skip
    return [
        {"vid": BIKES, "video_caption": "A man in a suit waits for a taxi.", "cross_pair": json.dumps(pairs)},
        {"vid": "gone_1_2", "video_caption": "Missing.", "cross_pair": "{}"},
        {"vid": LATER, "video_caption": "Blocks drift.", "cross_pair": "{no json"},
        {"vid": OTHER, "video_caption": "Damaged.", "cross_pair": "{}"},
        {"vid": None, "video_caption": "Nameless.", "cross_pair": "{}"},
    ]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("koala")
    (folder / "clips" / "00").mkdir(parents=True)
    real(folder, "bikes").rename(folder / "clips" / "00" / f"{BIKES}.mp4")
    write_video(folder / "clips" / f"{LATER}.mp4", noise(5, 40))
    (folder / "clips" / f"{OTHER}.mp4").write_bytes(b"<html>")
    pq.write_table(pa.Table.from_pylist(rows()), folder / "koala36M_multi_ref_merged_filtered.parquet")
    return PhantomDataSettings(str(folder / "koala36M_multi_ref_merged_filtered.parquet"), str(folder / "clips"))


@pytest.fixture(scope="module")
def work(source, tmp_path_factory):
    """(work folder, rejected rows by stage and reason)."""
    folder = tmp_path_factory.mktemp("work")
    stages = [*reader(source), samples.stage(SampleSettings(validation_fraction=0)),
              write.stage(TranscodeSettings(short_side=96), folder)]  # fmt: skip
    return folder, run_here(stages, folder)


def test_the_whole_way_to_shards_that_the_trainer_decodes(work, source, tmp_path):
    written = write_shards(work[0], PARTS, tmp_path, WriteSettings(), quiet=True)
    assert written.samples == {"train": 1, "validation": 0} and not written.left_out
    triplet, sample = decode_all(tmp_path / "train")[sample_key(BIKES)]
    assert (triplet.caption, triplet.video_id) == ("A man in a suit waits for a taxi.", "a1b2")
    assert sample.error is None and triplet.frames == 237  # 250 frames at 25 per second become 240 at 24
    suit, taxi = triplet.references
    assert (suit.phrase, suit.category, suit.kind) == ("a man in a suit", "human", "cross")
    assert (suit.source.video_id, suit.source.frame, suit.source.box) == ("a1b2", 20, (0, 0, 80, 45))
    assert (taxi.phrase, taxi.category, taxi.kind, taxi.source.frame) == ("taxi", "product", "in", 72)
    assert np.allclose(taxi.source.box, (85, 105, 490, 225))
    frame = to_rgb(frames_at(find_videos(source.videos)[BIKES], [72.25 / 25])[0])
    assert np.abs(sample.crops[1].astype(float) - frame[105:225, 85:490]).mean() < 3


def test_what_is_missing_damaged_or_wrong_is_recorded_and_stops_nothing(work):
    folder, reasons = work
    assert reasons["annotations"] == {"video missing": 1, "wrong field": 2}
    assert reasons["clips"] == {"video unreadable": 1} and reasons["samples"] == {}
    assert reasons["crops"] == {"video missing": 1, "box out of range": 1, "wrong field": 3, "video unreadable": 1}
    rejected = Table(folder, "crops", PARTS).read(["crop_id", "reason", "detail"], accepted=False).to_pylist()
    told = {row["crop_id"]: f"{row['reason']}: {row['detail']}" for row in rejected}
    assert told[f"{BIKES}_2_cross0"] == "video missing: no video is called gone_1_2"
    assert "981" in told[f"{BIKES}_3_cross0"] and "frame_idx is 'x', not a number" in told[f"{BIKES}_3_cross1"]
    assert "not four numbers" in told[f"{BIKES}_3_cross2"] and f"{OTHER}.mp4" in told[f"{BIKES}_3_cross4"]


def test_clips_that_only_give_references_are_no_samples(source, tmp_path):
    table = pa.Table.from_pylist([row for row in rows() if row["vid"] == BIKES]).rename_columns(
        ["video_id", "video_caption", "cross_pair"]
    )
    pq.write_table(table, tmp_path / "copy.parquet")
    found = list(list_clips(PhantomDataSettings(str(tmp_path / "copy.parquet"), source.videos)))
    assert [row["clip_id"] for row in found] == [BIKES, LATER, "gone_1_2", OTHER]
    assert [row["data"] == "{}" for row in found] == [False, True, True, True]


@pytest.mark.parametrize(
    ("vid", "video"),
    [("784cdb68_12.5_20.25", "784cdb68"), ("my_own_clip", "my_own_clip"), ("a_b_1_2", "a_b"), ("x", "x")],
)
def test_clips_of_a_video_have_one_source(vid, video):
    assert source_video(vid) == video


def test_pairs_are_read_from_text_structs_and_maps():
    expected = {"cat": {"refer_result": []}}
    for value in (json.dumps(expected), expected | {"dog": None}, list(expected.items())):
        assert read_pairs(value) == expected
    for value in ("[1]", "nonsense", None, 3):
        with pytest.raises(Rejection, match="cross_pair"):
            read_pairs(value)


def test_boxes_may_reach_a_little_out_of_their_picture_and_no_further():
    assert fractions_of([-1, 0, 101, 50], (100, 50)) == [0, 0, 1, 1]
    for wrong in ([-5, 0, 50, 50], [0, 0, 50, 60], [50, 0, 50, 50], [60, 0, 50, 50], [101, 0, 102, 50]):
        with pytest.raises(Rejection, match="box out of range"):
            fractions_of(wrong, (100, 50))


def test_mistakes_are_told(source, tmp_path):
    with pytest.raises(UserError, match="holds no video"):
        list(list_clips(PhantomDataSettings(source.annotations, str(tmp_path))))
    with pytest.raises(UserError, match="is not a readable parquet file"):
        list(list_clips(PhantomDataSettings(str(tmp_path / "none.parquet"), source.videos)))
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match="lacks vid, video_caption or cross_pair; it has a"):
        list(list_clips(PhantomDataSettings(str(tmp_path / "other.parquet"), source.videos)))
