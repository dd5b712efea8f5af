"""The copy-paste score: closed forms, and its order on pairs of a real film: the same frame, the same shot, another."""

import json

import cv2
import numpy as np
import pytest

from phantom_mega.curation.video import frames_at, to_rgb
from phantom_mega.data.samples import ANNOTATIONS, source_video
from phantom_mega.evaluation import copy_paste
from phantom_mega.evaluation.alignment import Alignment
from phantom_mega.evaluation.copy_paste import cells, crop, excess, light, pose
from tests.evaluation.items import item, still, texture

METRIC = copy_paste.build(copy_paste.CopyPasteSettings(), "cpu")


def laid(reference, frame, degrees=0.0, inside=None):
    """A frame that lies on a reference already."""
    everywhere = np.ones(reference.shape[:2], bool)
    return Alignment(reference, everywhere, frame, everywhere if inside is None else inside, degrees)


def score(frames, *references):
    return METRIC.measure(item(frames, references=references)).value


# -- its parts


def test_pose_is_the_share_of_textured_cells_that_are_repeated():
    reference, frame = texture(80, 80), texture(80, 80)
    frame[:40] = texture(40, 80, 5)
    assert pose(laid(reference, reference)) == 1
    assert pose(laid(reference, frame)) == pytest.approx(0.5, abs=0.05)
    reference[:, :40] = 128  # flat cells say nothing, whether or not they are repeated
    assert pose(laid(reference, frame)) == pytest.approx(0.5, abs=0.05)
    assert pose(laid(np.full((80, 80, 3), 90, np.uint8), frame)) == 0


def test_pose_falls_with_the_turn_of_the_copy():
    reference = texture(80, 80)
    found = [pose(laid(reference, reference, degrees)) for degrees in (-15, 30, 45, 170)]
    assert found == pytest.approx([2 / 3, 1 / 3, 0, 0])


def test_crop_is_the_correlation_times_the_share_in_sight():
    reference, half = texture(80, 80), np.zeros((80, 80), bool)
    half[:, :20] = True
    assert crop(laid(reference, reference)) == pytest.approx(1)
    assert crop(laid(reference, reference, inside=half)) == pytest.approx(0.25)
    assert crop(laid(reference, 255 - reference)) == 0


def test_light_falls_with_brightness_and_with_its_slope():
    reference = np.full((65, 65, 3), 100, np.uint8)
    assert light(laid(reference, reference)) == 1
    assert light(laid(reference, reference + np.uint8(16))) == pytest.approx(np.exp(-0.5))
    slope = (100 + np.arange(-32, 33)[None, :, None]).repeat(65, 0).repeat(3, 2).astype(np.uint8)
    assert light(laid(reference, slope)) == pytest.approx(np.exp(-1))
    tinted = reference.copy()
    tinted[..., 0] += 48  # one colour of three
    assert light(laid(reference, tinted)) == pytest.approx(np.exp(-0.5))
    assert light(laid(reference, reference, inside=np.zeros((65, 65), bool))) == 0


def test_cells_cover_the_area_and_small_pictures_have_fewer():
    area = np.ones((20, 30), bool)
    assert len(cells(area)) == 64
    area[:, 15:] = False
    assert len(cells(area)) == 32
    assert len(cells(np.ones((3, 2), bool))) == 6


def test_excess_is_what_the_truth_does_not_have():
    assert excess(0.75, 0.25) == 0.5 and excess(0.0, 0.25) == -0.25


# -- pasted references


def test_a_reference_shown_as_a_still_is_copied_and_another_picture_is_not():
    picture = texture()
    assert score(still(picture, 2), picture) == pytest.approx(1, abs=0.03)
    assert score(still(picture, 2), texture(seed=4)) < 0.1


def test_the_score_is_the_mean_over_references_and_frames_with_each_in_the_detail():
    picture, other = texture(), texture(seed=4)
    frames = np.concatenate([still(picture, 2), still(texture(seed=6), 2)])
    found = METRIC.measure(item(frames, references=(picture, other)))
    first, second = found.detail["reference_1"], found.detail["reference_2"]
    assert first == pytest.approx(0.5, abs=0.05) and second < 0.1
    assert found.value == pytest.approx((first + second) / 2)
    assert found.detail["peak"] == pytest.approx(1, abs=0.03)
    assert set(found.detail) == {"peak", "pose", "crop", "light", "reference_1", "reference_2"}


def test_a_copy_in_other_light_scores_between_a_copy_and_none():
    picture = texture(120, 120)
    frame = texture(360, 512, 9)
    frame[100:220, 200:320] = picture
    dark = frame.copy()
    dark[100:220, 200:320] = picture * 0.5
    assert score(frame[None], picture) > 0.95
    assert 0.4 < score(dark[None], picture) < 0.7


def test_a_mirrored_copy_scores_as_none():
    picture = texture()
    assert score(still(np.ascontiguousarray(picture[:, ::-1]), 1), picture) < 0.1


def test_a_case_without_references_says_so():
    assert METRIC.measure(item(still(texture()))).missing == "the case has no reference"
    assert not METRIC.higher_is_better


# -- a real film


SUBJECTS = ("bunny", "frank", "rinky", "nut")


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """For each subject (crop, frame of it, frame 1/8 s later, frame of another shot of it), from Big Buck Bunny."""
    path = tmp_path_factory.mktemp("film") / "bbb.mp4"
    path.write_bytes(source_video("bbb"))
    found = []
    for name in SUBJECTS:
        shots = [boxes for boxes in map(lambda line: boxes_of(line, name), ANNOTATIONS.open()) if len(boxes) > 1]
        (first, *_), (other, *_) = shots[1], shots[-2]  # not the title scenes at the ends
        times = [first["time"], first["time"] + 1 / 8], [other["time"]]
        frames = [to_rgb(frame, 640, 360) for some in times for frame in frames_at(path, some)]
        found.append((cut(frames[0], first["box"]), *frames))
    return found


def boxes_of(line, name):
    record = json.loads(line)
    found = [subject["boxes"] for subject in record["subjects"] if subject.get("identity") == name]
    return sorted(found[0], key=lambda box: box["time"]) if found and record["video"] == "bbb.mp4" else []


def cut(frame, box):
    left, top, right, bottom = (round(x * side) for x, side in zip(box, (640, 360) * 2))
    return frame[top:bottom, left:right]


def test_of_a_real_film_the_same_frame_scores_above_its_shot_and_that_above_another_shot(film):
    scores = [[score(frame[None], reference) for frame in frames] for reference, *frames in film]
    same, near, other = np.array(scores).T
    assert same.min() > 0.9 and other.max() < 0.2
    assert (same > near).all() and np.median(near) > np.median(other) + 0.2


def test_a_crop_of_a_real_film_pasted_into_another_shot_is_found_again(film):
    for reference, _, _, other in film[:2]:
        frame, (height, width) = other.copy(), reference.shape[:2]
        top, left = (360 - height) // 2, (640 - width) // 2
        frame[top : top + height, left : left + width] = reference
        compressed = cv2.imdecode(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 70])[1], cv2.IMREAD_COLOR)
        assert excess(score(compressed[None], reference), score(other[None], reference)) > 0.6
