"""OpenS2V-5M: from its JSON, with boxes, masks and cross pairs, and a folder of videos to shards."""

import json

import numpy as np
import pytest

from phantom_mega.curation import samples, write
from phantom_mega.curation.engine.tables import Table
from phantom_mega.curation.readers.opens2v import OpenS2VSettings, iterate_objects, list_clips, read_cross_pairs, reader
from phantom_mega.curation.samples import SampleSettings, sample_key
from phantom_mega.curation.transcode import TranscodeSettings
from phantom_mega.curation.video import frames_at, to_rgb
from phantom_mega.curation.write import WriteSettings, write_shards
from phantom_mega.errors import UserError
from tests.curation.clips import noise, real, write_video
from tests.curation.tables import PARTS, decode_all, run_here

ONE, TWO = "gm1_part1_step1-0-61", "gm1_part2_step1-0-50"


def runs(mask):
    """COCO's run lengths of bool [height, width]."""
    flat = np.concatenate([[0], mask.T.ravel().astype(int), [2]])
    return np.diff(np.concatenate([[0], np.flatnonzero(np.diff(flat))])).tolist()


def entry(path, cut, size, subjects, frame=0, crop=None, masks=None, **metadata):
    """An annotation; `subjects` are (class name, box) and `masks` run lengths by number."""
    width, height = size
    about = {
        "cut": [0, 9999], "crop": crop or [0, width, 0, height], "tech": 2.0, "motion": 0.01, "fps": 25.0,
        "num_frames": cut[1] - cut[0], "resolution": {"height": height, "width": width}, "path": path,
        "aesthetic": 5.0, "face_cut": cut, "face_cap_qwen": 'A man in a "suit"; {brackets} ] and a taxi.',
    } | metadata  # fmt: skip
    boxes = [{"class_name": name, "bbox": box, "gme_score": 0.3, "aes_score": 4.0} for name, box in subjects]
    frames = {
        "ann_frame_idx": frame,
        "annotations": boxes,
        "box_format": "xyxy",
        "img_width": width,
        "img_height": height,
    }
    return {
        "metadata": about,
        "word_tags": {"background": ["street"], "subject": ["man"], "object": ["taxi"], "pre_define": ["person"]},
        "annotation": {
            "ann_frame_data": frames,
            "mask_map": {str(i): {"class_name": name} for i, (name, _) in enumerate(subjects, 1)},
            "mask_annotation": {str(frame): masks or {}},
        },
    }


def pair(cur, aft, similarity, cur_class="1", aft_class="1"):
    return {"cur_id": cur, "aft_id": aft, "cur_class_id": cur_class, "aft_class_id": aft_class, "cur_class_name": "man",
            "aft_class_name": "man", "text_similarity": 0.9, "image_similarity": similarity, "cur_frame_idx": 0,
            "aft_frame_idx": 0}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("opens2v")
    (folder / "videos").mkdir()
    real(folder / "videos", "bikes").rename(folder / "videos" / "gm1.mp4")
    write_video(folder / "videos" / "gm3.mp4", noise(4, 40))
    mask = np.zeros((272, 640), bool)
    mask[110:200, 100:400] = True
    masks = {"2": {"size": [272, 640], "counts": runs(mask), "score": [0.99]}}
    wrong = {"1": {"size": [90, 160], "counts": "255"}, "2": {"size": [8, 8], "counts": [64]}}
    part = np.zeros((90, 120), bool)
    part[20:60, 20:60] = True
    data = {
        ONE: entry("gm1.mp4", [30, 76], (640, 272),
                   [("man", [252, 0, 480, 272]), ("taxi", [85, 105, 490, 225]), ("street", [1, 1, 639, 271])],
                   frame=72, masks=masks),
        TWO: entry("sub/gm1.mp4", [76, 137], (640, 272), [("person", [335, 5, 525, 272])], frame=112),
        "gm2_part1": entry("gone.mp4", [0, 50], (640, 272), []),
        "gm3_part1": entry("gm3.mp4", [0, 40], (160, 90), [("ball", [0, 0, 50, 50]), ("cup", [0, 0, 50, 50]),
                           ("cat", [0, 0, 500, 50]), ("dog", "rubbish")], masks=wrong),
        "gm3_part2": entry("gm3.mp4", [0, 40], (120, 90), [("ball", [10, 10, 70, 70])], crop=[30, 150, 0, 90],
                           masks={"1": {"size": [90, 120], "counts": runs(part)}}),
        "gm3_part3": entry("gm3.mp4", [50, 90], (160, 90), []),
        "gm3_part4": {"metadata": "none"},
        "gm3_part5": {"metadata": {"path": "gm3.mp4", "face_cap_qwen": "No annotation"}},
    }  # fmt: skip
    (folder / "total_part1.json").write_text(json.dumps(data, indent=4))
    ids = [f"total_part1/{name}" for name in (ONE, TWO)]
    crosses = {"gm1": [pair(*ids, 0.82), pair(*ids, 0.999, "2"), pair(ids[0], ids[0], 0.9), {"cur_id": 3}]}
    (folder / "cross.json").write_text(json.dumps(crosses))
    return OpenS2VSettings(
        [str(folder / "total_part1.json")], [str(folder / "cross.json")], str(folder / "videos"), max_similarity=0.95
    )


def run(folder, settings):
    sample = SampleSettings(validation_fraction=0)
    stages = [*reader(settings), samples.stage(sample), write.stage(TranscodeSettings(short_side=90), folder)]
    return run_here(stages, folder)


@pytest.fixture(scope="module")
def work(source, tmp_path_factory):
    """(work folder, rejected rows by stage and reason)."""
    folder = tmp_path_factory.mktemp("work")
    return folder, run(folder, source)


def test_the_whole_way_to_shards_that_the_trainer_decodes(work, source, tmp_path):
    written = write_shards(work[0], PARTS, tmp_path, WriteSettings(), quiet=True)
    assert written.samples == {"train": 2, "validation": 0} and not written.left_out
    found = decode_all(tmp_path / "train")
    triplet, sample = found[sample_key(f"total_part1/{ONE}")]
    assert triplet.caption == 'A man in a "suit"; {brackets} ] and a taxi.' and triplet.video_id == "gm1"
    assert triplet.frames == 41 and sample.error is None  # 46 frames at 25 per second become 44 at 24
    man, taxi = triplet.references
    assert (man.phrase, man.kind, man.source.frame, man.source.box) == ("man", "cross", 112, (335, 5, 525, 272))
    assert (taxi.phrase, taxi.category, taxi.kind, taxi.mask) == ("taxi", "product", "in", True)
    frame = to_rgb(frames_at(f"{source.videos}/gm1.mp4", [72.25 / 25])[0])[105:225, 85:490].astype(float)
    crop = sample.crops[1].astype(float)
    assert np.abs(crop[10:90, 20:310] - frame[10:90, 20:310]).mean() < 3, "inside of the mask is the picture"
    assert (crop[100:] > 250).all() and (crop[:, 320:] > 250).all(), "outside of it is white"
    back = found[sample_key(f"total_part1/{TWO}")][0].references
    assert [(one.phrase, one.kind, one.source.frame) for one in back] == [("person", "cross", 72)]


def test_what_is_missing_or_wrong_is_recorded_and_stops_nothing(work):
    folder, reasons = work
    assert reasons["annotations"] == {"video missing": 1, "wrong field": 1}
    assert reasons["clips"] == {"wrong field": 2} and reasons["selected"] == {"part cut off": 1}
    rejected = Table(folder, "crops", PARTS).read(["crop_id", "reason", "detail"], accepted=False).to_pylist()
    told = {row["crop_id"].split("/")[1]: f"{row['reason']}: {row['detail']}" for row in rejected}
    assert told["gm3_part1:1"] == "wrong field: the mask's runs cover 12 of 14400 pixels"
    assert told["gm3_part1:2"].startswith("wrong field: a mask of 8x8")
    assert told["gm3_part1:3"].startswith("box out of range") and "not four numbers" in told["gm3_part1:4"]


def test_boxes_and_masks_of_a_cut_off_part_are_found_in_the_whole_frame(work, source, tmp_path):
    rows = Table(work[0], "crops", PARTS).read(["crop_id", "box", "mask"], accepted=True).to_pylist()
    crop = next(row for row in rows if "gm3_part2" in row["crop_id"])
    assert np.allclose(crop["box"], [40 / 160, 10 / 90, 100 / 160, 70 / 90]) and crop["mask"]
    source = OpenS2VSettings(source.annotations, [], source.videos, take_whole_frames=True)
    assert "part cut off" not in run(tmp_path, source)["selected"]


def test_cross_pairs_hold_in_both_directions_within_their_limits(source):
    pairs = read_cross_pairs(source)
    one, two = (f"total_part1/{name}" for name in (ONE, TWO))
    assert pairs == {one: [("1", two, "1", 0.82)], two: [("1", one, "1", 0.82)]}


def test_objects_are_found_whatever_their_strings_hold(tmp_path):
    data = {"a": {"x": '"}]{', "y": [{"z": "\\"}, []]}, 'b\u00e4"': {}, "c": {"d": {"e": 1}}, "f": 3, "g": {"h": "i"}}
    path = tmp_path / "a.json"
    for text in (json.dumps(data), json.dumps(data, indent=1, ensure_ascii=False)):
        path.write_text(text)
        found = {name: json.loads(path.read_bytes()[start:stop]) for name, start, stop in iterate_objects(path)}
        assert found == {name: value for name, value in data.items() if isinstance(value, dict)}


@pytest.mark.parametrize(
    ("text", "problem"), [('{"a": {"b": 1', "ends in the middle"), ("[1]", "a list"), ("", "empty")]
)
def test_files_that_are_no_annotations_are_refused(source, tmp_path, text, problem):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=problem):
        list(list_clips(OpenS2VSettings([str(tmp_path / "a.json")], [], source.videos)))
    with pytest.raises(UserError, match="does not exist"):
        list(list_clips(OpenS2VSettings([str(tmp_path / "b.json")], [], source.videos)))
