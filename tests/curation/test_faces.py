"""Whose face it is: faces of crops of one moment are given out one to one, and each rejection says why."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from phantom_mega.curation.columns import COLUMNS
from phantom_mega.curation.engine.tables import Table
from phantom_mega.curation.face_models import Face, FaceSettings
from phantom_mega.curation.faces import (
    DETECTIONS,
    FaceMatchSettings,
    assign,
    describe,
    generalised_iou,
    head_of,
    in_frame,
    match,
    match_all,
    open_matching,
    same_faces,
    stages,
)
from phantom_mega.errors import UserError
from tests.curation.face_photos import jpeg, photo
from tests.curation.tables import PARTS, run_here, write_table

WHOLE = [0.0, 0.0, 1.0, 1.0]
DLIB = FaceSettings(face_backend="dlib")


def crop(name, image, clip="c", time=1.0, box=WHOLE, category="human", scale=1, **other):
    width, height = image.size if isinstance(image, Image.Image) else (1, 1)
    data = jpeg(image) if isinstance(image, Image.Image) else image
    known = {"crop_id": name, "clip_id": clip, "video_id": "v", "path": "v.mp4", "subject": 0, "phrase": "a man"}
    sizes = {"width": int(width * scale), "height": int(height * scale)}
    return known | {"category": category, "time": time, "box": list(box), "image": data, "mask": None} | sizes | other


def run(folder, crops, detection=DLIB, matching=None):
    """(accepted rows of `faces`, (reason, score) of the others) by crop, and the reasons of each stage."""
    write_table(folder, "crops", crops)
    reasons = run_here(stages(detection, matching or FaceMatchSettings()), folder)
    rows = {row["crop_id"]: row for row in Table(folder, "faces", PARTS).read().to_pylist()}
    accepted = {name: row for name, row in rows.items() if row["accepted"]}
    rejected = {name: (row["reason"], row["score"]) for name, row in rows.items() if not row["accepted"]}
    return accepted, rejected, reasons


def tables(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("face*/*")}


def test_faces_of_photographs_come_with_place_and_vector_and_bad_pictures_with_their_reason(tmp_path):
    obama, damaged = photo("obama"), jpeg(photo("biden"))
    blurred = photo("obama3").filter(ImageFilter.GaussianBlur(3))
    crops = [
        crop("obama", obama, clip="a"),
        crop("obama3", photo("obama3"), clip="b", scale=3),
        crop("biden", photo("biden"), clip="c"),
        crop("half", photo("obama_partial_face"), clip="d"),
        crop("tie", obama, clip="e", category="clothes"),
        crop("no face", obama.crop((0, 300, 400, 500)), clip="f"),
        crop("point", Image.new("RGB", (1, 1)), clip="g"),
        crop("cut off", damaged[: len(damaged) // 2], clip="h"),
        crop("rubbish", b"rubbish", clip="i"),
        crop("tiny", obama, clip="j", scale=0.2),
        crop("blurred", blurred, clip="k"),
    ]
    accepted, rejected, reasons = run(tmp_path, crops)
    assert set(accepted) == {"obama", "obama3", "biden", "half"}
    assert reasons["face_detections"] == {"no category with faces": 1, "no face": 2, "unreadable": 2}
    assert {name: reason for name, (reason, _) in rejected.items()} == {"tiny": "small face", "blurred": "blurred face"}
    assert 15 < rejected["tiny"][1] < 25 and 0 < rejected["blurred"][1] < 10
    vectors = {name: np.array(row["face"], np.float32) for name, row in accepted.items()}
    assert all(abs(np.linalg.norm(vector) - 1) < 1e-6 for vector in vectors.values())
    assert vectors["obama"] @ vectors["obama3"] > 0.93 > vectors["obama"] @ vectors["biden"]
    x0, y0, x1, y1 = accepted["obama"]["box"]  # of the picture's 410 x 512 pixels
    assert 0.37 < x0 < 0.46 and 0.1 < y0 < 0.17 and 0.6 < x1 < 0.7 and 0.3 < y1 < 0.4
    assert set(COLUMNS["faces"]) < set(accepted["obama"]) and 0.5 < accepted["biden"]["confidence"] < 1

    before = tables(tmp_path)
    run(tmp_path, crops[::-1])
    assert tables(tmp_path) == before, "equal rows give equal bytes, whatever their order"
    # Thresholds change without a look at a picture.
    accepted, _, again = run(tmp_path, crops, matching=FaceMatchSettings(min_face_pixels=10, min_face_sharpness=0))
    assert set(accepted) == {"obama", "obama3", "biden", "half", "tiny", "blurred"} and again["faces"] == {}
    changed = {name for name, data in tables(tmp_path).items() if before[name] != data}
    assert changed and all(name.startswith("faces/") for name in changed)


def test_two_people_who_stand_close_get_their_own_face_each(tmp_path):
    """The crop of each shows the face of the other too."""
    left, right = photo("obama"), photo("biden").crop((40, 0, 225, 400))
    frame = Image.new("RGB", (left.width + right.width, 512), "grey")
    frame.paste(left, (0, 0)), frame.paste(right, (left.width, 60))
    boxes = {"left": (90, 20, 560, 512), "right": (330, 60, 595, 460), "hand": (250, 100, 560, 512)}
    size = (frame.width, frame.height) * 2
    crops = [
        crop(name, frame.crop(box), box=[value / side for value, side in zip(box, size)]) for name, box in boxes.items()
    ]
    alone = {name: run(tmp_path / name, [one])[0][name] for name, one in zip(boxes, crops)}
    accepted, rejected, _ = run(tmp_path / "all", crops)
    assert set(accepted) == {"left", "right"} and rejected["hand"][0] == "face of another subject"
    obama, biden = (run(tmp_path / n, [crop(n, photo(n))])[0][n]["face"] for n in ("obama", "biden"))
    assert np.dot(accepted["left"]["face"], obama) > 0.97 and np.dot(accepted["right"]["face"], biden) > 0.97
    assert np.dot(alone["hand"]["face"], biden) > 0.97, "which the hand's crop would have taken alone"
    later = [one | ({"time": 2.0} if one["crop_id"] == "hand" else {}) for one in crops]
    assert set(run(tmp_path / "later", later)[0]) == {"left", "right", "hand"}, "only faces of one moment compete"


def test_without_a_backend_the_table_is_there_and_empty(tmp_path):
    accepted, rejected, reasons = run(tmp_path, [crop("a", photo("obama"))], FaceSettings())
    assert not accepted and not rejected and reasons["face_detections"] == {"no face backend": 1}
    accepted, _, _ = run(tmp_path / "none", [])
    assert not accepted and (tmp_path / "none/faces/part-00000.parquet").is_file()


# -- pure

BOXES = st.tuples(*[st.floats(0, 0.875, width=32)] * 2, *[st.floats(0.0625, 1, width=32)] * 2).map(
    lambda v: (v[0], v[1], v[0] + v[2], v[1] + v[3])
)


@given(BOXES, BOXES, st.floats(0.1, 10), st.floats(0.1, 10))
def test_generalised_iou_is_symmetric_bounded_and_does_not_care_for_the_shape_of_the_frame(a, b, x, y):
    value = generalised_iou(a, b)
    assert -1 <= value <= 1 + 1e-9 and value == pytest.approx(generalised_iou(b, a))
    wider = [tuple(v * s for v, s in zip(box, (x, y, x, y))) for box in (a, b)]
    assert generalised_iou(*wider) == pytest.approx(value, abs=1e-6)
    assert generalised_iou(a, a) == pytest.approx(1)


def test_generalised_iou_falls_with_the_distance():
    values = [generalised_iou((0, 0, 1, 1), (d, 0, d + 1, 1)) for d in range(5)]
    assert values == pytest.approx([1, 0, -1 / 3, -0.5, -0.6])
    assert generalised_iou((0, 0, 0, 0), (0, 0, 0, 0)) == -1


def test_the_head_is_expected_in_the_middle_below_the_hair():
    assert head_of((0.2, 0.1, 0.6, 0.9), (0.5, 0.5, 0.6, 0.7)) == pytest.approx((0.35, 0.15, 0.45, 0.35))
    assert in_frame((0.25, 0.5, 0.75, 1.0), (0.2, 0.0, 0.6, 0.4)) == pytest.approx((0.3, 0.2, 0.5, 0.4))


def test_a_child_before_its_father_keeps_its_face_and_he_his():
    father, child = (0.3, 0.1, 0.7, 1.0), (0.42, 0.5, 0.62, 1.0)
    his, its = (0.45, 0.13, 0.55, 0.28), (0.47, 0.53, 0.57, 0.67)
    given = assign([father, child], [[its, his], [its]], FaceMatchSettings())
    assert [number for number, _ in given] == [1, 0]
    # He turns away: the child's face is not his, though it is the only one in his box.
    given = assign([father, child], [[its], [its]], FaceMatchSettings())
    assert [number for number, _ in given] == [None, 0]
    assert assign([father], [[(0.62, 0.9, 0.7, 1.0)]], FaceMatchSettings())[0][0] is None, "nobody's head is down there"


@given(st.lists(st.tuples(BOXES, st.lists(BOXES, max_size=4)), max_size=5), st.floats(0.3, 1))
def test_no_face_is_given_twice_and_none_to_a_crop_that_does_not_show_it(moment, overlap):
    crops, boxes = [crop for crop, _ in moment], [faces for _, faces in moment]
    faces = same_faces(boxes, overlap)
    assert sorted((c, n) for face in faces for c, n in face.items()) == [
        (c, n) for c, found in enumerate(boxes) for n in range(len(found))
    ], "every detection is of one face"
    given = assign(crops, boxes, FaceMatchSettings(same_face_overlap=overlap))
    taken = [
        next(i for i, face in enumerate(faces) if face.get(c) == n) for c, (n, _) in enumerate(given) if n is not None
    ]
    assert len(given) == len(crops) and len(set(taken)) == len(taken)
    for (number, fit), found, box in zip(given, boxes, crops):
        if number is not None:
            assert fit == pytest.approx(generalised_iou(found[number], head_of(box, found[number]))) and fit >= -0.5


def test_a_face_cut_off_by_the_edge_of_a_crop_is_the_same_face():
    whole, half, other = (0.4, 0.1, 0.6, 0.4), (0.4, 0.1, 0.49, 0.4), (0.62, 0.1, 0.8, 0.4)
    assert same_faces([[whole], [half, other]], 0.5) == [{0: 0, 1: 0}, {1: 1}]


@pytest.mark.parametrize(
    ("column", "limit", "reason"),
    [("confidence", 0.5, "unsure face"), ("pixels", 40.0, "small face"), ("sharpness", 10.0, "blurred face")],
)
def test_each_threshold_takes_its_limit_and_nothing_below(column, limit, reason):
    face = {"box": (0.4, 0.1, 0.6, 0.4), "confidence": 0.9, "pixels": 100.0, "sharpness": 99.0}
    row = {"crop_box": WHOLE, "found": [face | {column: limit}]}
    assert match([row], FaceMatchSettings()) == [(0, None, None)]
    row["found"] = [face | {column: limit - 1e-6}]
    ((_, *found),) = match([row], FaceMatchSettings())
    assert found == [reason, limit - 1e-6]


def test_the_vector_is_that_of_the_face_that_was_given_and_a_tie_goes_by_the_crops_name():
    """The surest face of `b` is another's; `y` and `z` are one box, as of a subject that was named twice."""
    face = {"confidence": 0.9, "pixels": 100.0, "sharpness": 99.0}
    corner, middle = face | {"box": (0.9, 0.8, 1.0, 0.9)}, face | {"box": (0.4, 0.1, 0.6, 0.4)}
    rows = [
        {"crop_id": name, "clip_id": name if name == "b" else "c", "time": 1.0, "crop_box": WHOLE, "found": found,
         "vectors": [[float(i), 1.0] for i in range(len(found))]}
        for name, found in (("z", [middle]), ("b", [corner, middle]), ("y", [middle]))
    ]  # fmt: skip
    for order in (rows, rows[::-1]):
        table = pa.Table.from_pylist(order, schema=pa.schema(DETECTIONS))
        found = {row["crop_id"]: row for row in match_all({"face_detections": table}, FaceMatchSettings())}
        assert found["b"]["face"].tolist() == [1.0, 1.0] and found["b"]["box"] == list(middle["box"])
        assert found["y"]["accepted"] and found["z"]["reason"] == "face of another subject"


def test_the_size_of_a_face_is_counted_in_pixels_of_the_frame():
    image, vector = np.zeros((100, 200, 3), np.uint8), np.ones(1, np.float32)
    for box, pixels in (((50, 0, 150, 100), 300.0), ((0, 0, 20, 50), 60.0), ((0, 0, 200, 10), 40.0)):
        found = describe(Face(box, 0.9, vector), image, {"width": 600, "height": 400})
        assert found["pixels"] == pytest.approx(pixels)


@pytest.mark.parametrize("settings", [{"min_face_confidence": 1.5}, {"min_face_fit": -2}, {"same_face_overlap": -0.1}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        open_matching(FaceMatchSettings(**settings))
