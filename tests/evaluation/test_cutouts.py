"""Segmented metrics: only the subject counts, and what is not detected counts as zero and is named.

The detector of colours below really finds its subjects: "red" is where a picture is red. Grounding DINO and SAM are
tiny ones of random weights.
"""

import numpy as np
import pytest

from phantom_mega.errors import UserError
from phantom_mega.evaluation import clip_i_seg, dino_i_seg
from phantom_mega.evaluation.cutouts import Cutouts, SegmentedSettings, SegmentedSimilarity, cut_out
from tests.evaluation.pictures import clip, item
from tests.evaluation.small_encoders import mobilenet, write_clip, write_dino
from tests.tiny_models import write_grounding_dino, write_sam, write_sam2

COLOURS = {"red": (220, 0, 0), "blue": (0, 0, 220)}


def detect_colours(image, labels):
    pixels, found = np.asarray(image), []
    for number, label in enumerate(labels):
        rows, columns = np.nonzero((pixels == COLOURS[label]).all(-1))
        if len(rows):
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            # A smaller, unsure box too: it must not be taken.
            found += [(number, 0.4, [0, 0, 5, 5]), (number, 0.9, [float(side) for side in box])]
    return found


def segment_boxes(image, boxes):
    masks = np.zeros((len(boxes), *image.shape[:2]), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[int(y0) : int(y1), int(x0) : int(x1)] = True
    return masks


def scene(background, **places):
    """A real frame with squares of colours at (top, left)."""
    image = background.copy()
    for label, (top, left) in places.items():
        image[top : top + 30, left : left + 30] = COLOURS[label]
    return image


@pytest.fixture(scope="module")
def encode():
    return mobilenet(fit="pad")


def by_colour(encode, **settings):
    cutouts = Cutouts(detect_colours, segment_boxes)
    return SegmentedSimilarity("seg", "Seg", encode, cutouts, SegmentedSettings(**settings))


def test_another_background_and_place_change_nothing(encode):
    street, car = clip("bikes"), clip("carphone")
    reference = scene(car[0], red=(5, 8))
    video = np.stack([scene(street[i * 20], red=(i * 5, i * 9)) for i in range(10)])
    measured = by_colour(encode).measure(item(video, reference, labels=["red"]))
    assert measured.value == pytest.approx(1, abs=1e-6) and measured.missing == ""
    whole = by_colour(encode, segment_references=False).measure(item(video, reference, labels=["red"]))
    assert whole.value < 0.9, "the reference as a whole shows a man"


def test_of_a_frame_all_but_the_subject_is_white(encode):
    image = scene(clip("carphone")[0], red=(20, 40))
    mask = segment_boxes(image, [(40, 20, 70, 50)])[0]
    box, frame = cut_out(image, mask, "box"), cut_out(image, mask, "frame")
    assert box.shape == (30, 30, 3) and (box == COLOURS["red"]).all()
    assert frame.shape == image.shape and (frame[~mask] == 255).all() and (frame[mask] == COLOURS["red"]).all()
    assert cut_out(image, np.zeros_like(mask), "box") is None
    moved = [scene(clip("carphone")[0], red=(0, 0)), scene(clip("carphone")[0], red=(60, 70))]
    value = by_colour(encode, region="frame").measure(item(moved, moved[0], labels=["red"])).value
    assert value < 1 - 1e-4, "in the whole frame the place shows"


def test_a_frame_without_the_subject_counts_as_zero_and_is_named(encode):
    frames = [scene(clip("bikes")[i], **({} if i in (2, 7) else {"red": (10, 10)})) for i in range(10)]
    measured = by_colour(encode).measure(item(frames, frames[0], labels=["red"]))
    assert measured.value == pytest.approx(0.8, abs=1e-6)
    assert measured.missing == "'red' not detected in 2 of 10 frames (2, 7)"
    assert measured.detail == {"reference_1": pytest.approx(0.8, abs=1e-6), "found_1": pytest.approx(0.8)}


def test_each_reference_is_compared_with_its_own_subject(encode):
    frames = [scene(clip("bikes")[i], red=(10, 10), **({"blue": (50, 60)} if i < 5 else {})) for i in range(10)]
    references = scene(clip("carphone")[0], blue=(0, 0)), scene(clip("carphone")[9], red=(30, 30))
    measured = by_colour(encode).measure(item(frames, *references, labels=["blue", "red"]))
    assert measured.detail["reference_1"] == pytest.approx(0.5, abs=1e-6)
    assert measured.detail["reference_2"] == pytest.approx(1, abs=1e-6)
    assert measured.missing == "'blue' not detected in 5 of 10 frames (5, 6, 7, 8, 9)"


def test_a_reference_without_label_or_subject_counts_as_zero_and_is_named(encode):
    frames = np.stack([scene(clip("bikes")[0], red=(10, 10))] * 3)
    references = frames[0], clip("carphone")[0], frames[0]
    measured = by_colour(encode).measure(item(frames, *references, labels=["", "red", "red"]))
    assert measured.value == pytest.approx(1 / 3, abs=1e-6)
    assert measured.missing == "reference 1 has no label; 'red' not detected in reference 2"
    whole = by_colour(encode, segment_references=False).measure(item(frames, *references, labels=["", "red", "red"]))
    assert whole.missing == "reference 1 has no label" and whole.detail["reference_2"] > 0
    assert by_colour(encode).measure(item(frames)).missing == "the case has no reference"


def test_masks_of_an_item_are_found_once_for_all_metrics(encode):
    looked = []

    def counted(image, labels):
        looked.append(image.size)
        return detect_colours(image, labels)

    cutouts = Cutouts(counted, segment_boxes)
    one, two = (SegmentedSimilarity(n, n, encode, cutouts, SegmentedSettings(frames=4)) for n in "ab")
    frames = np.stack([scene(clip("bikes")[i], red=(10, 10)) for i in range(8)])
    first, second = (item(frames[::step], frames[0], labels=["red"]) for step in (1, -1))
    assert one.measure(first).value == two.measure(first).value and len(looked) == 5
    fewer = SegmentedSimilarity("c", "c", encode, cutouts, SegmentedSettings(frames=2))
    fewer.measure(first)
    assert len(looked) == 7, "other frames are looked at, the reference is not looked at again"
    one.measure(second)
    assert len(looked) == 12, "another item is looked at anew"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    writers = {"detector": write_grounding_dino, "mask_model": write_sam, "sam2": write_sam2}
    return {name: str(write(tmp_path_factory.mktemp(name))) for name, write in writers.items()}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    name, weights, _ = write_clip(tmp_path_factory.mktemp("clip"))
    return {
        clip_i_seg: {"model": name, "pretrained": str(weights)},
        dino_i_seg: {"model": str(write_dino(tmp_path_factory.mktemp("dino"))[0])},
    }


@pytest.mark.parametrize(("module", "masks"), [(clip_i_seg, "mask_model"), (dino_i_seg, "mask_model"),
                                               (dino_i_seg, "sam2")])  # fmt: skip
def test_grounding_dino_and_sam_find_the_same_in_the_same_picture(folders, encoders, module, masks):
    ((name, (settings, build)),) = module.METRICS.items()
    given = {"detector": folders["detector"], "mask_model": folders[masks], "frames": 2} | encoders[module]
    picture = clip("bikes")[40]
    case = item(np.stack([picture] * 2), picture, labels=["a man."])
    metric = build(settings(**given, threshold=0.01), "cpu")
    measured = metric.measure(case)
    assert metric.name == name and measured.value == pytest.approx(1, abs=1e-5) and measured.missing == ""
    nothing = build(settings(**given, threshold=0.99999), "cpu").measure(case)
    assert nothing.value == 0 and nothing.missing == "'a man.' not detected in reference 1"
    letter = build(settings(**given, threshold=0.99999, segment_references=False), "cpu").measure(case)
    assert letter.value == 0 and letter.missing == "'a man.' not detected in any of 2 frames"


@pytest.mark.parametrize(("field", "source"), [("detector", "grounding-dino-base"), ("mask_model", "sam-vit-huge")])
def test_a_model_that_is_not_there_is_named_with_where_it_is_to_be_had(folders, encoders, tmp_path, field, source):
    ((settings, build),) = dino_i_seg.METRICS.values()
    given = {name: folders[name] for name in ("detector", "mask_model")} | encoders[dino_i_seg]
    with pytest.raises(UserError, match=rf"^dino_i_seg\.{field} .*could not be loaded: .*{source}$"):
        build(settings(**given | {field: str(tmp_path)}), "cpu")
