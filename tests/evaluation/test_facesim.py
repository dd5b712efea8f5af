"""FaceSim: real faces by dlib's models in place of SCRFD and ArcFace, and ONNX models of these two's signatures."""

import itertools

import cv2
import numpy as np
import pytest
import torch

from phantom_mega.curation.face_models.dlib_models import models_folder
from phantom_mega.errors import UserError
from phantom_mega.evaluation import facesim
from phantom_mega.evaluation.curricular_face import CurricularFaceNet, net_of
from phantom_mega.evaluation.facesim import Faces, FaceSim, FaceSimSettings, counts, face_similarities
from tests.curation.face_models.small_models import DETECTOR, RECOGNIZER, saved
from tests.curation.face_photos import photo
from tests.evaluation.pictures import clip, item


@pytest.fixture(scope="module")
def dlib_models():
    """(detector of faces with the five landmarks that ArcFace is aligned by, recogniser of aligned faces)."""
    import dlib

    find = dlib.get_frontal_face_detector()
    points = dlib.shape_predictor(str(models_folder() / "shape_predictor_68_face_landmarks.dat"))
    describe = dlib.face_recognition_model_v1(str(models_folder() / "dlib_face_recognition_resnet_model_v1.dat"))

    def detect(image):
        found = []
        for box, score, _ in zip(*find.run(np.ascontiguousarray(image), 1, 0.0), strict=True):
            at = np.array([(point.x, point.y) for point in points(image, box).parts()], float)
            five = np.stack([at[36:42].mean(0), at[42:48].mean(0), at[30], at[48], at[54]])
            found.append(((box.left(), box.top(), box.right(), box.bottom()), 1 / (1 + np.exp(-score)), five))
        return found

    def recognize(face):
        framed = cv2.copyMakeBorder(face, 10, 10, 10, 10, cv2.BORDER_REPLICATE)
        vector = np.array(describe.compute_face_descriptor(cv2.resize(framed, (150, 150))))
        return vector / np.linalg.norm(vector)

    return detect, recognize


@pytest.fixture(scope="module")
def people():
    """uint8 [h, w, 3] of each photograph."""
    return {name: np.asarray(photo(name, 360)) for name in ("obama", "obama2", "biden")}


@pytest.fixture(scope="module")
def street(people):
    """Nobody, in the size of the first photograph."""
    return cv2.resize(clip("bikes")[0], people["obama"].shape[1::-1])


def metric(models, **settings):
    settings = FaceSimSettings(**settings)
    return FaceSim("facesim", "FaceSim", Faces(models[0], settings.confidence), models[1], settings)


def test_the_same_person_is_more_alike_than_another(dlib_models, people):
    measure = metric(dlib_models).measure
    video = np.stack([people["obama"], people["obama"][:, ::-1]])
    own = measure(item(video[:1], people["obama"], labels=["man"]))
    same, other = (measure(item(video, people[name], labels=["man"])).value for name in ("obama2", "biden"))
    assert own.value == pytest.approx(1) and own.missing == ""
    assert 1 > same > other > 0


def test_frames_without_a_face_count_as_zero_and_are_named(dlib_models, people, street):
    video = np.stack([people["obama"], street, people["obama"], street])
    measured = metric(dlib_models).measure(item(video, people["obama"], labels=["a man"]))
    assert measured.value == pytest.approx(0.5) and measured.missing == "no face in 2 of 4 frames (1, 3)"
    assert measured.detail == {"reference_1": pytest.approx(0.5), "found_1": pytest.approx(0.5)}
    none = metric(dlib_models).measure(item(np.stack([street] * 3), people["obama"], labels=["a man"]))
    assert none.value == 0 and none.missing == "no face in any of 3 frames"


def test_references_of_things_have_no_face_and_persons_without_one_are_named(dlib_models, people, street):
    video = people["obama"][None]
    references = street, people["biden"], people["obama"], street
    measured = metric(dlib_models).measure(item(video, *references, labels=["dog", "a poster", "man", "woman"]))
    assert measured.detail.keys() >= {"reference_2", "reference_3", "reference_4"} - {"reference_2"}
    assert measured.detail["reference_3"] == pytest.approx(1) and measured.detail["reference_4"] == 0
    assert measured.missing == "no face in reference 4" and "reference_1" not in measured.detail
    things = metric(dlib_models).measure(item(video, street, labels=["dog"]))
    assert things.value == 0 and things.missing == "no reference is a person"
    assert metric(dlib_models).measure(item(video)).missing == "the case has no reference"
    unnamed = metric(dlib_models).measure(item(video, street))
    assert unnamed.value == 0 and unnamed.missing == "no face in reference 1"


def test_of_two_people_the_largest_face_is_compared_or_the_closest(dlib_models, people):
    large, small = people["obama"], people["biden"]
    small = small[: len(large)]
    frame = np.full((len(large), large.shape[1] + small.shape[1], 3), 255, np.uint8)
    frame[:, : large.shape[1]], frame[: len(small), large.shape[1] :] = large, small
    case = item(frame[None], people["obama"], people["biden"], labels=["man", "man"])
    largest, closest = (metric(dlib_models, face=face).measure(case).detail for face in ("largest", "closest"))
    assert largest["reference_1"] != pytest.approx(largest["reference_2"])
    assert closest["reference_1"] == pytest.approx(largest["reference_1"])
    assert closest["reference_2"] > largest["reference_2"]


def test_unsure_faces_are_none(dlib_models, people):
    case = item(people["obama"][None], people["obama"], labels=["man"])
    measured = metric(dlib_models, confidence=0.999).measure(case)
    assert measured.value == 0 and measured.missing == "no face in reference 1; no face in any of 1 frames"


def test_cosines_are_at_least_zero_and_missing_ones_are_marked():
    east, north, west = np.eye(2)[0], np.eye(2)[1], -np.eye(2)[0]
    frames = [np.array(faces) for faces in ([east], [], [west, north], [west])]
    found = face_similarities(frames, [east, None, north])
    expected = [[1, np.nan, 0], [np.nan] * 3, [0, np.nan, 1], [0, np.nan, 0]]
    assert np.array_equal(found, expected, equal_nan=True)


@pytest.mark.parametrize(("label", "has_face", "asked"), [
    ("a man in a suit", False, True), ("woman", True, True), ("", False, True), ("  ", False, True),
    ("a dog", True, False), ("a red dress", True, False), ("a castle", True, False), ("a phone", True, False),
    ("Einstein", True, True), ("sushi", False, False),
])  # fmt: skip
def test_persons_are_asked_for_their_faces_and_other_things_if_they_have_one(label, has_face, asked):
    assert counts(label, has_face) is asked


# -- as a configuration builds them


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    return {"detector": saved(folder, "det", DETECTOR), "recognizer": saved(folder, "rec", RECOGNIZER)}


def build(name, **given):
    settings, make = facesim.METRICS[name]
    return make(settings(**given), "cpu")


def face_at(top, left, colour, height=160, width=240):
    """A picture whose one face, to the small detector, lies at a white cell; colours around it are its looks."""
    image = np.zeros((height, width, 3), np.uint8)
    image[top - 24 : top + 32, left - 24 : left + 8] = colour
    image[top : top + 8, left : left + 8] = 255
    return image


def test_each_metric_is_built_of_files_and_sees_aligned_faces(files):
    titles = {name: build(name, **files).title for name in facesim.METRICS}
    assert titles == {"facesim_arc": "FaceSim-Arc", "facesim_cur": "FaceSim-Cur", "facesim_glint": "FaceSim-glint"}
    sim = build("facesim_arc", **files)
    red, moved, blue = face_at(64, 120, (200, 0, 0)), face_at(80, 64, (200, 0, 0)), face_at(64, 120, (0, 0, 200))
    assert sim.measure(item([moved], red, labels=["man"])).value == pytest.approx(1, abs=1e-4)
    assert sim.measure(item([blue], red, labels=["man"])).value < 0.9
    empty = np.zeros_like(red)
    half = sim.measure(item([red, empty], red, labels=["man"]))
    assert half.value == pytest.approx(0.5, abs=1e-4) and half.missing == "no face in 1 of 2 frames (1)"


def test_faces_of_an_item_are_found_once_for_all_recognisers(files):
    arc, glint = build("facesim_arc", **files), build("facesim_glint", **files)
    assert arc.faces is glint.faces
    case = item([face_at(64, 120, (200, 0, 0))], face_at(64, 120, (0, 200, 0)), labels=["man"])
    assert arc.measure(case).value == glint.measure(case).value
    assert arc.faces.seen(case, 10) is arc.faces.seen(case, 10)


WIDTHS = [(8, 8), (8, 8), (8, 16), (16, 16), (16, 16), (16, 24), (24, 32)]  # four stages, as IR-101


@pytest.fixture(scope="module")
def curricular(tmp_path_factory):
    """(file of weights, its network) of CurricularFace, small."""
    torch.manual_seed(0)
    net = CurricularFaceNet(WIDTHS, 20)
    with torch.no_grad():
        net(torch.randn(8, 3, 112, 112))  # means and variances that are not those of a fresh network
    path = tmp_path_factory.mktemp("cur") / "curricular_face.bin"
    torch.save(net.state_dict(), path)
    return path, net.eval()


def test_curricular_face_reads_its_published_weights_of_any_depth(files, curricular):
    path, net = curricular
    faces = torch.randn(3, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(net_of(net.state_dict(), "here")(faces), net(faces), atol=1e-6)
    sim = build("facesim_cur", detector=files["detector"], recognizer=str(path))
    image = face_at(64, 120, (200, 0, 0))
    (face,) = sim.faces.aligned(image)
    with torch.no_grad():
        expected = net(torch.from_numpy(face / 127.5 - 1).float().permute(2, 0, 1)[None])[0].numpy()
    assert np.allclose(sim.recognize(face), expected / np.linalg.norm(expected), atol=1e-5)
    assert sim.measure(item([image], image, labels=["man"])).value == pytest.approx(1, abs=1e-5)


def test_the_published_depth_is_ir_101():
    stages = (3, 64), (13, 128), (30, 256), (3, 512)
    widths = [(64, 64)] * 3
    for (_, before), (count, width) in itertools.pairwise(stages):
        widths += [(before, width)] + [(width, width)] * (count - 1)
    with torch.device("meta"):
        net = CurricularFaceNet(widths, 512).eval()
        assert net(torch.zeros(1, 3, 112, 112)).shape == (1, 512)
    # 100 layers of weights: two convolutions in 49 units, the first one, the linear one at the end of 7 x 7 pixels.
    assert len(net.body) == 49 and net.output_layer[3].in_features == 512 * 7 * 7
    assert sum(value.numel() for value in net.parameters()) == 65_128_768
    assert [i for i, unit in enumerate(net.body) if unit.res_layer[3].stride == (2, 2)] == [0, 3, 16, 46]


@pytest.mark.parametrize(("changed", "message"), [
    ({"detector": ""}, r"^facesim_cur\.detector='': no such file; get det_10g.onnx of buffalo_l"),
    ({"recognizer": "none.bin"}, r"^facesim_cur\.recognizer='none.bin': no such file; get .*curricular_face_r101"),
    ({"face": "best"}, r"facesim_cur\.face='best'; use largest or closest"),
    ({"frames": 0}, r"facesim_cur\.frames=0"),
    ({"confidence": 1.0}, r"facesim_cur\.confidence=1\.0"),
])  # fmt: skip
def test_a_wrong_setting_is_named_with_where_the_model_is_to_be_had(files, changed, message):
    with pytest.raises(UserError, match=message):
        build("facesim_cur", **files | changed)


def test_files_of_other_models_are_refused(files, curricular, tmp_path):
    with pytest.raises(UserError, match=r"^facesim_arc\.detector=.* is no SCRFD detector"):
        build("facesim_arc", **files | {"detector": files["recognizer"]})
    with pytest.raises(UserError, match=r"^facesim_glint\.recognizer=.* cannot be used"):
        build("facesim_glint", **files | {"recognizer": files["detector"]})
    with pytest.raises(UserError, match=r"^facesim_arc\.recognizer=.* cannot be loaded"):
        build("facesim_arc", **files | {"recognizer": str(curricular[0])})
    torch.save({"body.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"^facesim_cur\.recognizer=.* holds no weights of a CurricularFace"):
        build("facesim_cur", **files | {"recognizer": str(tmp_path / "other.pth")})
