"""Pictures of subjects: what they show, how they are named, and which of them get masks."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from phantom_mega.curation import boxes, captions, crops, detections, subjects
from phantom_mega.curation.boxes import BoxSettings
from phantom_mega.curation.captions import CaptionSettings
from phantom_mega.curation.crops import CropSettings, masked, positions_of
from phantom_mega.curation.cut import LONGEST_SIDE, image_of, mask_of, pixels_of, stored_size
from phantom_mega.curation.detections import DetectionSettings
from phantom_mega.curation.subjects import SubjectSettings
from phantom_mega.curation.video import frames_at, to_rgb
from phantom_mega.errors import UserError
from tests.curation.clips import real, write_video
from tests.curation.tables import run_here, write_table
from tests.curation.vlm import run_alone, write_clips
from tests.tiny_models import write_sam, write_sam2

SUBJECTS = [{"phrase": "a man", "category": "human", "appearance": "", "identity": None},
            {"phrase": "a dog", "category": "animal", "appearance": "", "identity": None}]  # fmt: skip
LEFT, RIGHT = [0.0, 0.0, 0.5, 1.0], [0.5, 0.2, 1.0, 0.8]


def place(subject, box, position=0.5):
    return {"subject": subject, "position": position, "time": 3 * position, "box": box, "score": None}


def write_boxes(folder, rows, dropped=()):
    dropped = [place(*one) | {"reason": "small", "measured": 0.0} for one in dropped]
    write_table(folder, "subjects", [{"clip_id": name, "subjects": SUBJECTS} for name in rows])
    write_table(folder, "boxes", [
        {"clip_id": name, "boxes": found, "dropped": dropped} for name, found in rows.items()
    ])  # fmt: skip


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def test_crops_show_their_box_of_the_frame_at_their_time(tmp_path):
    path = write_clips(tmp_path, "one")["one"]
    write_boxes(tmp_path, {"one": [place(1, RIGHT), place(0, LEFT, 0.95)]}, dropped=[(0, LEFT, 0.05)])
    rows = run_alone(crops.stage(CropSettings(min_crop_sharpness=0)), tmp_path)
    assert list(rows) == ["one:0:2", "one:1:1"], "positions are counted with those of dropped boxes"
    row = rows["one:1:1"]
    assert (row["clip_id"], row["video_id"], row["path"]) == ("one", "v-one", str(path))
    assert (row["subject"], row["phrase"], row["category"], row["time"]) == (1, "a dog", "animal", 1.5)
    assert (row["box"], row["width"], row["height"], row["mask"]) == (RIGHT, 80, 54, None) and row["accepted"]
    frame = to_rgb(frames_at(path, [1.5])[0])
    assert np.abs(pixels(row["image"]).astype(int) - frame[18:72, 80:160]).mean() < 3
    assert np.abs(pixels(rows["one:0:2"]["image"]).astype(int) - frame[:, :80]).mean() > 20, "another moment and place"


def test_large_crops_are_made_smaller_and_no_box_is_empty():
    part = np.random.default_rng(0).integers(0, 255, (300, 1200, 3), dtype=np.uint8)
    assert pixels(image_of(Image.fromarray(part))).shape == (128, LONGEST_SIDE, 3)
    assert pixels(mask_of(part[..., 0] > 100)).shape == (128, LONGEST_SIDE)
    assert stored_size(100, 40) == (100, 40) and stored_size(100_000, 2) == (LONGEST_SIDE, 1)
    assert pixels_of([1.0, 1.0, 1.0, 1.0], 160, 90) == (159, 89, 160, 90)
    assert pixels_of([0.25, 0.0, 0.5, 1.0], 160, 90) == (40, 0, 80, 90)
    assert pixels_of([0.5, 0.5, 0.501, 0.501], 160, 90) == (80, 45, 81, 46)


def test_blurred_crops_are_rejected_one_by_one(tmp_path):
    write_clips(tmp_path, "one")
    frame = np.full((90, 160, 3), 90, np.uint8)
    frame[:, 80:] = np.random.default_rng(0).integers(0, 255, (90, 80, 3))
    path = write_video(tmp_path / "half.mp4", [frame] * 75)
    write_table(tmp_path, "clips", [{"clip_id": "one", "video_id": "v", "path": str(path)}])
    write_boxes(tmp_path, {"one": [place(0, [0.0, 0.0, 0.4, 1.0]), place(1, RIGHT)]})
    rows = run_alone(crops.stage(CropSettings()), tmp_path)
    blurred, sharp = rows["one:0:0"], rows["one:1:0"]
    assert (blurred["reason"], blurred["image"], blurred["width"]) == ("blurred", None, 64) and blurred["score"] < 1
    assert sharp["accepted"] and sharp["image"]


def test_a_video_that_cannot_be_read_is_recorded_and_stops_no_other(tmp_path):
    write_clips(tmp_path, "one", "two")["one"].write_bytes(b"<html>")
    write_boxes(tmp_path, {"one": [place(0, LEFT)], "two": [place(0, LEFT)]})
    rows = run_alone(crops.stage(CropSettings(min_crop_sharpness=0)), tmp_path)
    assert rows["one"]["reason"] == "unreadable" and rows["two:0:0"]["accepted"]


@pytest.mark.parametrize("write", [write_sam, write_sam2])
def test_masks_are_drawn_in_the_box_and_have_the_size_of_the_picture(tmp_path, write):
    write_clips(tmp_path, "one")
    write_boxes(tmp_path, {"one": [place(0, LEFT), place(1, RIGHT)]})
    (tmp_path / "sam").mkdir()
    given = {"min_crop_sharpness": 0, "mask_model": str(write(tmp_path / "sam")), "min_mask_area": 0}
    rows = run_alone(crops.stage(CropSettings(**given, max_mask_area=1)), tmp_path)
    for row in rows.values():
        mask = pixels(row["mask"])
        assert row["accepted"] and mask.shape == pixels(row["image"]).shape[:2] and row["detail"] is None
        assert set(np.unique(mask)) == {0, 255}, "random weights draw something"


def test_masks_of_nearly_nothing_or_nearly_all_are_none():
    inside = np.zeros((100, 100), bool)
    inside[:4] = True
    assert masked(inside, CropSettings()) == {"mask": None, "detail": "no mask: it covers 0.040 of the box"}
    assert masked(~inside[:, :50], CropSettings(max_mask_area=0.95))["mask"] is None
    inside[:50] = True
    found = masked(inside, CropSettings())
    assert (
        found.keys() == {"mask"}
        and (pixels(found["mask"])[:49] == 255).all()
        and (pixels(found["mask"])[51:] == 0).all()
    )


def test_a_crop_without_mask_is_kept_and_says_so(tmp_path):
    write_clips(tmp_path, "one")
    write_boxes(tmp_path, {"one": [place(0, LEFT)]})
    (tmp_path / "sam").mkdir()
    given = CropSettings(0, str(write_sam(tmp_path / "sam")), min_mask_area=0.0, max_mask_area=1e-6)
    (row,) = run_alone(crops.stage(given), tmp_path).values()
    assert row["accepted"] and row["mask"] is None and row["detail"].startswith("no mask: it covers 0.")


def test_positions_are_numbered_whatever_thresholds_dropped():
    good = {"boxes": [place(0, LEFT, 0.95)], "dropped": [place(1, LEFT, 0.05)]}
    other = {"boxes": [place(1, LEFT, 0.05), place(0, LEFT, 0.95)], "dropped": None}
    assert positions_of(good) == positions_of(other) == {0.05: 0, 0.95: 1}


def test_annotations_of_a_real_clip_become_crops_through_all_stages(tmp_path):
    path = real(tmp_path, "bikes")
    row = {"clip_id": "bikes", "video_id": "bikes", "path": str(path), "start": 0.0, "end": 10.0, "width": 640,
           "height": 272}  # fmt: skip
    write_table(tmp_path, "clips", [row, row | {"clip_id": "later", "start": 10.0, "end": 20.0}])
    write_table(tmp_path, "selected", [{"clip_id": "bikes"}, {"clip_id": "later"}])
    suit = {"phrase": "a man in a suit", "boxes": [{"time": 1.44, "box": [0.393, 0.0, 0.75, 0.998]}]}
    taxi = {
        "phrase": "a yellow taxi",
        "identity": "taxi",
        "boxes": [{"time": 2.88, "box": [0.133, 0.386, 0.766, 0.827]}],
    }
    cap = {"phrase": "a cap", "boxes": [{"time": 1.44, "box": [0.5, 0.1, 0.53, 0.15]}]}
    line = {"video": "bikes.mp4", "time": 1.44, "caption": "A man waits.", "subjects": [suit, taxi, cap]}
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(line))
    stages = [
        captions.stage(CaptionSettings("file", caption_file=str(file))),
        subjects.stage(SubjectSettings("file", subject_file=str(file))),
        detections.stage(DetectionSettings("file", detector_file=str(file), positions=[0.15, 0.3])),
        boxes.stage(BoxSettings(max_cut_sides=1)),
    ]
    reasons = run_here(stages, tmp_path)
    assert {name: dict(count) for name, count in reasons.items()} == {
        "captions": {"not annotated": 1}, "subjects": {}, "detections": {}, "boxes": {}
    }  # fmt: skip
    rows = run_alone(crops.stage(CropSettings()), tmp_path)
    assert {name: (row["category"], row["width"], row["height"]) for name, row in rows.items()} == {
        "bikes:0:0": ("human", 228, 271), "bikes:1:1": ("product", 405, 120)
    }  # fmt: skip
    frame = to_rgb(frames_at(path, [2.88])[0])
    assert np.abs(pixels(rows["bikes:1:1"]["image"]).astype(int) - frame[105:225, 85:490]).mean() < 3


def test_a_model_without_all_of_its_weights_is_refused(tmp_path):
    folder = write_sam(tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights.pop("mask_decoder.iou_token.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"crops.mask_model .* has no weights for 1 of its tensors"):
        crops.open_crops(CropSettings(mask_model=str(folder)))


@pytest.mark.parametrize(("given", "message"), [
    ({"mask_model": "/no/such"}, "crops.mask_model '/no/such' could not be loaded"),
    ({"min_mask_area": 0.9, "max_mask_area": 0.5}, "crops.min_mask_area=0.9 and crops.max_mask_area=0.5 must ascend"),
])  # fmt: skip
def test_settings_that_are_of_no_use_say_what(given, message):
    with pytest.raises(UserError, match=message):
        crops.open_crops(CropSettings(**given))
