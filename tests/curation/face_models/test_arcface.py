"""SCRFD's outputs, the alignment for ArcFace, and both by ONNX models of their signatures."""

import cv2
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import parser

from phantom_mega.curation.face_models import FaceSettings, open_face_model
from phantom_mega.curation.face_models.arcface import (
    SIDE,
    TEMPLATE,
    align,
    decode_scrfd,
    into_square,
    similarity_to,
    suppress,
)
from phantom_mega.errors import UserError
from tests.curation.face_models.small_models import DETECTOR, LANDMARKS, RECOGNIZER, saved


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    paths = {name: saved(folder, name, text) for name, text in (("det", DETECTOR), ("rec", RECOGNIZER))}
    return FaceSettings(face_backend="insightface", face_detector_path=paths["det"], face_recognizer_path=paths["rec"])


@pytest.mark.parametrize(("strides", "anchors"), [((8, 16, 32), 2), ((8, 16, 32, 64, 128), 1)])
@pytest.mark.parametrize("batch", [False, True])
def test_outputs_of_scrfd_are_decoded_as_its_authors_do(strides, anchors, batch):
    side = 128
    sizes = [(side // stride) ** 2 * anchors for stride in strides]
    outputs = [np.zeros((size, width), np.float32) for width in (1, 4, 10) for size in sizes]
    places = {0: (3, 5, 0.9), 1: (2, 6, 0.7)}  # level: row, column, score
    for level, (row, column, score) in places.items():
        number = (row * (side // strides[level]) + column) * anchors + anchors - 1
        outputs[level][number] = score
        outputs[level + len(strides)][number] = (1, 0.5, 2, 3)
        outputs[level + 2 * len(strides)][number] = LANDMARKS
    boxes, scores, landmarks = decode_scrfd([one[None] if batch else one for one in outputs], side)
    assert scores.tolist() == pytest.approx([0.9, 0.7])
    assert boxes.tolist() == [[40 - 8, 24 - 4, 40 + 16, 24 + 24], [96 - 16, 32 - 8, 96 + 32, 32 + 48]]
    assert landmarks[0].tolist() == [[32, 16], [48, 16], [40, 24], [32, 32], [48, 32]]


def warp(angle, scale, x, y):
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[cos, -sin, x], [sin, cos, y]])


@given(st.floats(-3.1, 3.1), st.floats(0.1, 9), st.floats(-500, 500), st.floats(-500, 500))
def test_a_known_warp_is_undone(angle, scale, x, y):
    matrix = warp(angle, scale, x, y)
    seen = TEMPLATE @ matrix[:, :2].T + matrix[:, 2]
    back = similarity_to(seen)
    assert np.allclose(seen @ back[:, :2].T + back[:, 2], TEMPLATE, atol=1e-6)


def test_landmarks_that_fit_no_warp_are_laid_nearest_and_never_mirrored():
    seen = TEMPLATE * 2 + np.random.default_rng(0).normal(0, 5, TEMPLATE.shape)
    x, y = seen.T
    one, none = np.ones(5), np.zeros(5)
    system = np.block([[np.stack([x, -y, one, none], 1)], [np.stack([y, x, none, one], 1)]])
    a, b, c, d = np.linalg.lstsq(system, TEMPLATE.T.ravel(), rcond=None)[0]
    assert np.allclose(similarity_to(seen), [[a, -b, c], [b, a, d]])
    mirrored = similarity_to(TEMPLATE * (-1, 1))
    assert np.linalg.det(mirrored[:, :2]) > 0
    assert np.isfinite(similarity_to(np.zeros((5, 2)))).all()


def test_the_landmarks_of_an_aligned_face_lie_at_the_template():
    matrix = warp(0.4, 1.7, 60, 30)
    landmarks = TEMPLATE @ matrix[:, :2].T + matrix[:, 2]
    image = np.zeros((330, 330, 3), np.uint8)
    for x, y in landmarks:
        cv2.circle(image, (round(x), round(y)), 5, (255, 255, 255), -1)
    aligned = align(image, landmarks)
    assert aligned.shape == (SIDE, SIDE, 3)
    for x, y in TEMPLATE:
        rows, columns = np.nonzero(aligned[round(y) - 8 : round(y) + 9, round(x) - 8 : round(x) + 9, 0] > 127)
        assert abs(rows.mean() - 8) < 1 and abs(columns.mean() - 8) < 1


def test_a_picture_is_shrunk_to_fit_and_never_grows():
    square, scale = into_square(np.full((400, 100, 3), 200, np.uint8), 128)
    assert scale == 0.32 and (square[:, :32] == 200).all() and not square[:, 32:].any()
    square, scale = into_square(np.full((3, 5, 3), 200, np.uint8), 128)
    assert scale == 1.0 and square.sum() == 200 * 45


def test_of_boxes_on_one_face_the_surest_stays():
    boxes = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [50, 50, 60, 60], [6, 0, 16, 10]], np.float32)
    assert suppress(boxes, np.array([0.6, 0.9, 0.5, 0.7], np.float32)) == [1, 3, 2]
    assert suppress(boxes[:0], boxes[:0, 0]) == []


def test_faces_of_a_picture_are_found_at_their_place_and_told_by_their_aligned_pixels(settings):
    image = np.zeros((160, 240, 3), np.uint8)
    image[64:72, 120:128] = 255  # one cell of the detector at 640
    image[70:90, 150:180] = (90, 0, 30)
    model = open_face_model(settings)
    (face,) = model(image)
    assert face.box == (104, 48, 136, 80) and face.confidence > 0.97
    landmarks = np.array([120, 64]) + 8 * np.reshape(LANDMARKS, (5, 2))
    aligned = (align(image, landmarks).astype(np.float64) - 127.5) / 127.5
    fields = aligned.reshape(4, 28, 4, 28, 3).mean((1, 3)).transpose(2, 0, 1).ravel()
    assert np.allclose(face.vector, fields / np.linalg.norm(fields), atol=1e-5)
    assert abs(np.linalg.norm(face.vector) - 1) < 1e-6 and face.vector.dtype == np.float32
    assert model(np.zeros((1, 1, 3), np.uint8)) == []
    inside = FaceSettings(**vars(settings) | {"face_scale_inside": True})
    unscaled = open_face_model(inside)(image)[0].vector
    assert (unscaled >= 0).all() and (face.vector < 0).any()


def test_a_large_face_is_found_at_the_small_size_too(settings):
    image = np.zeros((512, 512, 3), np.uint8)
    image[256:288, 256:288] = 255  # a cell at a quarter of the size
    sizes = {round(face.box[2] - face.box[0]) for face in open_face_model(settings)(image)}
    assert 128 in sizes


@pytest.mark.parametrize(
    ("field", "content", "message"),
    [
        ("face_detector_path", "rubbish", "face_detector_path=.* cannot be loaded"),
        ("face_detector_path", RECOGNIZER, "is no SCRFD detector with landmarks: it has 1 outputs instead of 9 or 15"),
        ("face_recognizer_path", DETECTOR, "face_recognizer_path=.* cannot be used"),
    ],
)
def test_a_file_that_is_no_such_model_is_refused_at_once(settings, tmp_path, field, content, message):
    path = tmp_path / "wrong.onnx"
    if content == "rubbish":
        path.write_text(content)
    else:
        onnx.save(parser.parse_model(content), path)
    with pytest.raises(UserError, match=message):
        open_face_model(FaceSettings(**vars(settings) | {field: str(path)}))
