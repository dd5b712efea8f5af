"""CLIP-I and DINO-I: one for the same picture, the mean over frames and references, order on real pictures."""

import numpy as np
import pytest

from phantom_mega.evaluation import clip_i, dino_i
from phantom_mega.evaluation.frames import uniform_indices
from phantom_mega.evaluation.image_similarity import ImageSimilarity, frames_without, mean_similarity
from tests.evaluation.pictures import clip, item
from tests.evaluation.small_encoders import mobilenet, write_clip, write_dino


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    """Both metrics with tiny models, as a configuration builds them."""
    name, weights, _ = write_clip(tmp_path_factory.mktemp("clip"))
    folder, _ = write_dino(tmp_path_factory.mktemp("dino"))
    made = []
    for module, given in ((clip_i, {"model": name, "pretrained": str(weights)}), (dino_i, {"model": str(folder)})):
        ((settings, build),) = module.METRICS.values()
        made.append(build(settings(**given), "cpu"))
    return made


@pytest.fixture(scope="module")
def by_mobilenet():
    return ImageSimilarity("m", "M", mobilenet(), 10)


def test_a_video_of_its_reference_scores_one(metrics):
    frame = clip("bikes")[40]
    for metric in metrics:
        measured = metric.measure(item(np.stack([frame] * 12), frame, frame))
        assert measured.value == pytest.approx(1) and measured.missing == ""
        assert measured.detail == {"reference_1": pytest.approx(1), "reference_2": pytest.approx(1)}
    assert [(m.name, m.title, m.higher_is_better) for m in metrics] == [
        ("clip_i", "CLIP-I", True), ("dino_i", "DINO-I", True),
    ]  # fmt: skip


def test_the_mean_is_over_ten_uniform_frames_and_all_references(metrics):
    frames, references = clip("bikes"), (clip("carphone")[0], clip("bigbuckbunny")[50])
    picked = frames[np.linspace(0, len(frames) - 1, 10).round().astype(int)]
    for metric in metrics:
        measured = metric.measure(item(frames, *references))
        by_hand = [[float(metric.encode([a])[0] @ metric.encode([b])[0]) for b in references] for a in picked]
        assert measured.value == pytest.approx(np.mean(by_hand))
        assert list(measured.detail.values()) == pytest.approx(np.mean(by_hand, axis=0))
        # Neither the order of time nor that of references matters, nor what lies between the frames that are looked at.
        assert metric.measure(item(picked[::-1], *references[::-1])).value == pytest.approx(measured.value)


def test_a_real_subject_is_more_alike_in_its_own_clip_than_in_another(by_mobilenet):
    clips = {name: clip(name, 160) for name in ("bikes", "carphone", "bigbuckbunny")}
    for name, frames in clips.items():
        reference = frames[5]
        scores = {other: by_mobilenet.measure(item(clips[other], reference)).value for other in clips}
        assert max(scores, key=scores.get) == name, scores


def test_brightness_changes_the_score_less_than_another_subject_does(by_mobilenet):
    man, rabbit = clip("carphone", 160), clip("bigbuckbunny", 160)
    darker = (man * 0.8).astype(np.uint8)
    reference = man[0]
    same, dark, other = (by_mobilenet.measure(item(one, reference)).value for one in (man, darker, rabbit))
    assert same > dark > other and same - dark < dark - other


def test_short_videos_are_measured_by_all_their_frames(metrics):
    frames = clip("bikes")[:3]
    for metric in metrics:
        each = [metric.measure(item(frames[i : i + 1], frames[2])).value for i in range(3)]
        assert metric.measure(item(frames, frames[2])).value == pytest.approx(np.mean(each))


def test_a_case_without_references_counts_as_zero_and_says_so(metrics):
    measured = metrics[0].measure(item(clip("bikes")[:2]))
    assert measured.value == 0 and measured.missing == "the case has no reference"


def test_what_was_not_found_counts_as_zero():
    value, detail = mean_similarity(np.array([[1.0, np.nan], [0.5, np.nan], [np.nan, 0.3]]))
    assert value == pytest.approx((1 + 0.5 + 0.3) / 6)
    assert detail == {
        "reference_1": pytest.approx(0.5), "reference_2": pytest.approx(0.1),
        "found_1": pytest.approx(2 / 3), "found_2": pytest.approx(1 / 3),
    }  # fmt: skip
    assert mean_similarity(np.array([[0.2]]), [3]) == (pytest.approx(0.2), {"reference_3": pytest.approx(0.2)})
    assert mean_similarity(np.array([[-0.5, 0.1]]))[0] == pytest.approx(-0.2), "negative cosines stay"


def test_frames_are_named_by_their_number_in_the_video():
    indices = uniform_indices(81, 10)
    lacking = [i in (0, 9) for i in range(10)]
    assert frames_without("no face", lacking, indices) == "no face in 2 of 10 frames (0, 80)"
    assert frames_without("no face", [True] * 4, range(4)) == "no face in any of 4 frames"
    assert frames_without("no face", [False] * 4, range(4)) == ""
