"""Where subjects are: boxes of any detector as fractions of the frame, and nothing that is not one."""

import base64
import io
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from phantom_mega.curation import detections
from phantom_mega.curation.detections import DetectionSettings, best_of, parse, sent_size, times_of
from phantom_mega.curation.video import frames_at, to_rgb
from phantom_mega.errors import SetupError, UserError
from phantom_mega.vlm.asking import UnusableAnswerError
from phantom_mega.vlm.endpoint import MAX_SIDE
from tests import loopback
from tests.curation.tables import write_table
from tests.curation.vlm import asked, run_alone, says, write_clips
from tests.tiny_models import write_grounding_dino, write_owl

MAN, DOG = "a tall man", "a small dog"


def write_subjects(folder, *clips, phrases=(MAN, DOG)):
    known = {"category": "others", "appearance": "", "identity": None}
    write_table(folder, "subjects", [
        {"clip_id": clip, "subjects": [{"phrase": phrase} | known for phrase in phrases]} for clip in clips
    ])  # fmt: skip


def objects(*found):
    return {"objects": [{"bbox_2d": box, "label": label} for label, box in found]}


def settings(server, **more):
    return DetectionSettings(
        **{"detector": "openai", "detector_model": "vlm", "detector_endpoint": server.address} | more
    )


def test_boxes_are_fractions_of_the_frame_at_each_position_and_all_of_a_phrase_are_kept(tmp_path):
    paths = write_clips(tmp_path, "one", start=1.0)
    write_subjects(tmp_path, "one")
    width, height = sent_size(160, 90)
    first = objects((DOG, [0, 0, width / 2, height]), (MAN, [0, 0, 14, 21]), ("A Tall Man.", [14, 0, width, 21]))
    with loopback.serving(says(first), says(objects()), says(objects((MAN, [0, 0, width, height])))) as server:
        row = run_alone(detections.stage(settings(server)), tmp_path)["one"]
    places = [(one["subject"], one["position"], round(one["time"], 3), one["score"]) for one in row["detections"]]
    assert places == [(0, 0.05, 1.1, None), (0, 0.05, 1.1, None), (1, 0.05, 1.1, None), (0, 0.95, 2.9, None)]
    boxes = [one["box"] for one in row["detections"]]
    assert boxes == [[0, 0, 14 / width, 21 / height], [14 / width, 0, 1, 21 / height], [0, 0, 0.5, 1], [0, 0, 1, 1]]
    image, text = asked(server, 1)[1]["content"]
    assert f"{width} wide and {height} high" in text["text"] and json.dumps([MAN, DOG]) in text["text"]
    sent = Image.open(io.BytesIO(base64.b64decode(image["image_url"]["url"].split(",")[1])))
    frame = Image.fromarray(to_rgb(frames_at(paths["one"], [2.0])[0])).resize(sent.size)
    assert sent.size == (width, height)
    assert max(abs(a - b) for a, b in zip(sent.getpixel((20, 20)), frame.getpixel((20, 20)), strict=True)) < 12


def test_models_that_count_to_a_thousand_are_read_so(tmp_path):
    write_clips(tmp_path, "one")
    write_subjects(tmp_path, "one")
    with loopback.serving(says(objects((MAN, [100, 200, 500, 1000])))) as server:
        row = run_alone(detections.stage(settings(server, box_scale="thousand", positions=[0.5])), tmp_path)["one"]
    assert [one["box"] for one in row["detections"]] == [[0.1, 0.2, 0.5, 1.0]]
    assert "from 0 to 1000" in asked(server)[1]["content"][1]["text"]


@given(st.integers(16, 8000), st.integers(16, 8000))
def test_pictures_are_sent_in_a_size_that_neither_the_endpoint_nor_qwen_changes(width, height):
    sent = sent_size(width, height)
    assert max(sent) <= MAX_SIDE and smart_resize(sent[1], sent[0]) == (sent[1], sent[0])


SIZE = (280, 140)


def test_answers_are_read_as_an_object_or_as_the_list_that_qwen_writes():
    box = {"bbox_2d": [28, 14, 280, 140], "label": MAN}
    assert parse(json.dumps({"objects": [box]}), [DOG, MAN], SIZE) == [(1, [0.1, 0.1, 1.0, 1.0])]
    assert parse(f"```json\n[{json.dumps(box)}]\n```", [DOG, MAN], SIZE) == [(1, [0.1, 0.1, 1.0, 1.0])]
    assert parse("[]", [MAN], SIZE) == []
    reaching = objects((MAN, [-2, 0, 283, 70]))
    assert parse(json.dumps(reaching), [MAN], SIZE) == [(0, [0.0, 0.0, 1.0, 0.5])]


@pytest.mark.parametrize(("text", "wrong"), [
    ("There is no man.", "holds no JSON object"),
    ("[" * 100_000, "is not valid JSON"),
    ("{}", '"objects" must be a list of objects'),
    ("[1, 2]", '"objects" must be a list of objects'),
    (json.dumps(objects(("a cat", [0, 0, 9, 9]))), "the label 'a cat' is none of the phrases"),
    (json.dumps(objects((7, [0, 0, 9, 9]))), "the label '7' is none of the phrases"),
    (json.dumps(objects((MAN, [0, 0, 400, 9]))), "must be x0, y0, x1, y1 within a picture of 280x140"),
    (json.dumps(objects((MAN, [0, -9, 9, 9]))), "must be x0, y0, x1, y1 within"),
    (json.dumps(objects((MAN, [9, 0, 9, 9]))), "is empty"),
    (json.dumps(objects((MAN, [90, 0, 9, 9]))), "is empty"),
    (json.dumps(objects((MAN, [0, 0, 9]))), "must be x0, y0"),
    (json.dumps(objects((MAN, "0 0 9 9"))), "must be x0, y0"),
    (json.dumps(objects((MAN, [0, 0, True, 9]))), "must be x0, y0"),
    (json.dumps(objects((MAN, [0, 0, 10**400, 9]))), "must be x0, y0"),
    (json.dumps(objects((MAN, [0, 0, math.nan, 9]))), "must be x0, y0"),
    (json.dumps(objects((MAN, [0, 0, math.inf, 9]))), "must be x0, y0"),
    (json.dumps(objects(*[(MAN, [0, 0, 9, 9])] * 51)), "there are 51 objects; give each once"),
])  # fmt: skip
def test_answers_that_cannot_be_used_are_told(text, wrong):
    with pytest.raises(UnusableAnswerError, match=wrong):
        parse(text, [MAN, DOG], SIZE)


def test_rubbish_is_asked_again_and_then_recorded_and_a_dead_endpoint_too(tmp_path):
    write_clips(tmp_path, "one", "two", "three", "four")
    write_subjects(tmp_path, "one", "two", "three", "four")
    replies = [says(objects(("a cat", [0, 0, 9, 9]))), says(objects((MAN, [0, 0, 9, 9]))), says("?"), says("?"),
               says(objects()), (503, {"Retry-After": "0"}, "")]  # fmt: skip
    with loopback.serving(*replies) as server:
        given = settings(server, positions=[0.5], detector_attempts=2)
        reasons = sorted(str(row["reason"]) for row in run_alone(detections.stage(given), tmp_path).values())
    assert reasons == ["None", "model unavailable", "no usable boxes", "nothing detected"]
    assert "the label 'a cat' is none of the phrases" in asked(server, 1)[3]["content"]
    with loopback.serving((403, {}, "")) as server, pytest.raises(SetupError, match="it refuses"):
        run_alone(detections.stage(settings(server)), tmp_path)


def test_a_video_that_cannot_be_read_is_recorded(tmp_path):
    write_clips(tmp_path, "one")["one"].write_bytes(b"<html>")
    write_subjects(tmp_path, "one")
    with loopback.serving(says("{}")) as server:
        assert run_alone(detections.stage(settings(server)), tmp_path)["one"]["reason"] == "unreadable"
    assert server.seen == []


@pytest.mark.parametrize("write", [write_owl, write_grounding_dino])
def test_zero_shot_detectors_give_boxes_for_each_phrase(tmp_path, write):
    write_clips(tmp_path, "one")
    write_subjects(tmp_path, "one", phrases=("Mr. Smith in a very long, old and worn coat", DOG))
    (tmp_path / "model").mkdir()
    given = {"detector": "transformers", "detector_model": str(write(tmp_path / "model"))}
    row = run_alone(detections.stage(DetectionSettings(**given, detector_threshold=0.0)), tmp_path)["one"]
    assert {one["position"] for one in row["detections"]} == {0.05, 0.5, 0.95}
    if write is write_grounding_dino:
        assert {one["subject"] for one in row["detections"]} == {0, 1}
    for one in row["detections"]:
        x0, y0, x1, y1 = one["box"]
        assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 and 0 < one["score"] <= 1
    again = run_alone(detections.stage(DetectionSettings(**given, detector_threshold=1.0)), tmp_path)["one"]
    assert again["reason"] == "nothing detected"


def test_of_many_boxes_the_best_are_kept():
    places = [{"subject": i % 2, "score": i / 100, "box": [0.0, 0.0, 0.1, 0.1]} for i in range(60)]
    assert [(one["subject"], one["score"]) for one in best_of(places, 2)] == [
        (0, 0.58),
        (0, 0.56),
        (1, 0.59),
        (1, 0.57),
    ]


def test_boxes_by_hand_go_to_the_nearest_position_within_the_tolerance_and_the_clip(tmp_path):
    write_clips(tmp_path, "one", "two", "three", start=1.0, end=3.0)
    write_subjects(tmp_path, "one", "two", "three")
    times = [0.9, 1.15, 1.3, 2.1, 2.6, 3.0]
    man = {"phrase": "A tall man", "boxes": [{"time": time, "box": [0, 0, 0.5, 1]} for time in times]}
    other = {"phrase": "a cat", "boxes": [{"time": 2.0, "box": [0, 0, 1, 1]}]}
    path = tmp_path / "a.jsonl"
    lines = [
        {"video": "one.mp4", "time": 2, "subjects": [other, man]},
        {"video": "two.mp4", "time": 2, "subjects": [other]},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    given = DetectionSettings("file", detector_file=str(path), file_tolerance=0.25)
    rows = run_alone(detections.stage(given), tmp_path)
    found = [(one["subject"], one["position"], one["time"]) for one in rows["one"]["detections"]]
    assert times_of(given.positions, 1.0, 3.0) == pytest.approx([1.1, 2.0, 2.9])
    assert found == [(0, 0.05, 1.15), (0, 0.05, 1.3), (0, 0.5, 2.1)]
    assert rows["one"]["detections"][0]["box"] == [0, 0, 0.5, 1] and rows["one"]["detections"][0]["score"] is None
    assert (rows["two"]["reason"], rows["three"]["reason"]) == ("nothing detected", "not annotated")


@pytest.mark.parametrize(("given", "message"), [
    ({}, "detections.detector=none finds no boxes"),
    ({"detector": "yolo"}, "detections.detector=yolo finds no boxes; use openai, transformers or file"),
    ({"detector": "openai"}, "detections.detector openai needs detections.detector_model"),
    ({"detector": "transformers"}, "detections.detector=transformers needs detections.detector_model"),
    ({"detector": "transformers", "detector_model": "/no/such"}, "detector_model '/no/such' could not be loaded"),
    ({"detector": "file"}, "annotations .* cannot be read"),
    ({"detector": "openai", "box_scale": "percent"}, "detections.box_scale=percent is unknown"),
    ({"detector": "openai", "positions": []}, r"detections.positions=\[\] must ascend"),
    ({"detector": "openai", "positions": [0.5, 0.5]}, "must ascend"),
    ({"detector": "openai", "positions": [0.5, 1.0]}, "must ascend from 0 on and stay below 1"),
])  # fmt: skip
def test_settings_that_miss_something_say_what(given, message):
    with pytest.raises(UserError, match=message):
        detections.open_detections(DetectionSettings(**given))
