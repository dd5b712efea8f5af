"""dlib's models on photographs: faces are found, and vectors tell people apart; what is no face gives none."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps

from phantom_mega.curation.face_models import FaceSettings, open_face_model
from phantom_mega.curation.face_models.dlib_models import DlibFaces
from phantom_mega.errors import UserError
from tests.curation.face_photos import jpeg, photo
from tests.training.conftest import REPOSITORY, environment

ONE_PERSON = 0.93  # cosine that lies between what was measured for the same and for other people


@pytest.fixture(scope="module")
def model():
    return DlibFaces()


@pytest.fixture(scope="module")
def faces(model):
    """The only face of each photograph."""
    found = {name: model(np.asarray(photo(name))) for name in ("obama", "obama2", "obama3", "biden")}
    assert all(len(one) == 1 for one in found.values())
    return {name: one[0] for name, one in found.items()}


def test_photos_of_one_person_are_nearer_than_those_of_two(faces):
    for a, b in itertools.combinations(faces, 2):
        cosine = float(faces[a].vector @ faces[b].vector)
        assert (cosine > ONE_PERSON) == (a[:5] == b[:5]), (a, b, cosine)
    assert all(abs(np.linalg.norm(face.vector) - 1) < 1e-6 and face.vector.shape == (128,) for face in faces.values())


def test_a_copy_is_nearer_than_another_photo_of_the_person(model, faces):
    import io

    image = photo("obama")
    copies = (ImageOps.mirror(image), Image.open(io.BytesIO(jpeg(image, 40))).convert("RGB"))
    copied = [float(model(np.asarray(copy))[0].vector @ faces["obama"].vector) for copy in copies]
    others = [float(faces["obama"].vector @ faces[name].vector) for name in ("obama2", "obama3")]
    assert min(copied) > 0.985 > 0.98 > max(others)


def test_the_box_holds_the_face_and_ends_at_the_picture(model, faces):
    x0, y0, x1, y1 = faces["obama"].box  # eyes at about (195, 105) and (240, 105), chin at 170, in 410 x 512
    assert 150 < x0 < 190 and 55 < y0 < 90 and 245 < x1 < 290 and 160 < y1 < 200
    (half,) = model(np.asarray(photo("obama_partial_face")))
    assert half.box[0] == 0.0 and float(half.vector @ faces["obama"].vector) > ONE_PERSON
    cut = np.asarray(photo("obama"))[90:]  # through the forehead
    assert all(min(face.box) >= 0 and face.box[3] <= len(cut) for face in model(cut))


def test_pictures_without_a_face_have_none(model):
    noise = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    for image in (
        noise,
        np.zeros((1, 1, 3), np.uint8),
        np.zeros((512, 2, 3), np.uint8),
        np.asarray(photo("obama"))[250:],
    ):
        assert [face for face in model(image) if face.confidence >= 0.5] == []


def test_without_the_packages_the_message_names_them():
    code = (
        "import sys; sys.modules['dlib'] = None\n"
        "from phantom_mega.curation.face_models import FaceSettings, open_face_model\n"
        "open_face_model(FaceSettings(face_backend='dlib'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment(), capture_output=True, text=True
    )
    assert "SetupError: faces.face_backend=dlib needs the packages dlib-bin and" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"face_backend": "dlip"}, "face_backend=dlip; use one of none, dlib"),
     ({"face_backend": "insightface"}, "face_detector_path='': no such file")],
)  # fmt: skip
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        open_face_model(FaceSettings(**settings))
