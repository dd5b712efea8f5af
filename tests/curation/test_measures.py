"""What is measured of clips: pictures and motions made to have it, and real clips."""

import cv2
import numpy as np
import open_clip
import pytest
import torch

from phantom_mega.curation import measures
from phantom_mega.curation.engine.stage import Rejection
from phantom_mega.curation.measures import MeasureSettings, open_measures, sample_times
from phantom_mega.curation.video import probe
from phantom_mega.errors import UserError
from tests.curation.clips import noise, real, write_video


@pytest.fixture(scope="module")
def picture():
    """A textured picture: smooth noise of several sizes, uint8 [360, 640, 3]."""
    rng, image = np.random.default_rng(0), np.zeros((360, 640, 3))
    for size in (4, 16, 64):
        image += cv2.resize(
            rng.uniform(0, 80, (360 // size, 640 // size, 3)), (640, 360), interpolation=cv2.INTER_CUBIC
        )
    return np.clip(image, 0, 255).astype(np.uint8)


def test_black_and_blank_frames_are_told_from_a_night_scene(picture):
    dark, night = np.zeros_like(picture), picture // 4
    assert measures.black([dark, dark, picture, picture]) == 0.5 and measures.black([night]) == 0
    assert measures.contrast([picture, np.full_like(picture, 200)]) == 0 and measures.contrast([picture]) > 15


def test_bars_are_measured_by_their_share_and_a_dark_edge_of_one_frame_is_none(picture):
    barred = picture.copy()
    barred[:45] = barred[-45:] = 0
    assert measures.letterbox([barred, barred]) == pytest.approx(0.25, abs=0.01)
    pillar = picture.copy()
    pillar[:, :64] = 3
    assert measures.letterbox([pillar]) == pytest.approx(0.1, abs=0.01)
    assert measures.letterbox([barred, picture]) < 0.01 and measures.letterbox([np.zeros_like(picture)]) == 0


def test_blur_lowers_sharpness_and_size_does_not_matter(picture):
    sharp = measures.sharpness([picture])
    assert measures.sharpness([cv2.GaussianBlur(picture, (0, 0), 3)]) < sharp / 10
    assert measures.sharpness([cv2.resize(picture, (1280, 720))]) == pytest.approx(sharp, rel=0.2)


def test_motion_is_in_heights_per_second(picture):
    moved = np.roll(picture, 18, 1)  # a twentieth of the height
    assert measures.motion([(picture, moved)], 0.2) == pytest.approx(0.25, rel=0.2)
    assert measures.motion([(picture, picture)], 0.2) < 1e-3


def test_writing_is_found_and_pictures_without_it_have_none(picture):
    written = picture.copy()
    text = "THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG"
    for y in (300, 340):
        cv2.putText(written, text, (10, y), cv2.FONT_HERSHEY_SIMPLEX, 0.75, (255, 255, 255), 2)
    assert measures.text_area([written, written]) > 0.05 > 0.005 > measures.text_area([picture])
    assert measures.text_area([written, picture]) < 0.005, "writing that goes is no watermark"


def test_hashes_survive_scaling_and_differ_between_pictures(picture):
    def distance(a, b):
        return int(np.unpackbits(np.frombuffer(a, np.uint8) ^ np.frombuffer(b, np.uint8)).sum())

    one, small = (measures.perceptual_hash(image) for image in (picture, cv2.resize(picture, (320, 180))))
    assert len(one) == 8 and distance(one, small) <= 4 < 16 < distance(one, measures.perceptual_hash(picture[::-1]))


@pytest.mark.parametrize(("length", "count"), [(10.0, 5), (1.0, 5), (0.2, 5), (0.04, 3), (3.0, 1)])
def test_frames_are_looked_at_inside_of_the_clip(length, count):
    times = sample_times(4.0, 4.0 + length, count, min(0.2, length / 2))
    assert len(times) == 2 * count and min(times) >= 4.0 and max(times) <= 4.0 + length


def test_real_clips_are_measured_as_they_look(tmp_path):
    measure = open_measures(MeasureSettings())

    def row(path, start=0.5, end=3.5):
        info = probe(path)
        known = {"clip_id": "c", "path": str(path), "start": start, "end": end}
        return measure(known | {"width": info.width, "height": info.height})[0]

    bunny, man = row(real(tmp_path, "bigbuckbunny")), row(real(tmp_path, "carphone"))
    still = row(write_video(tmp_path / "still.mp4", [noise(3, 1)[0]] * 100))
    assert still["motion"] < 0.002 < man["motion"] < 1
    for one in (bunny, man):
        assert one["black"] == 0 and one["letterbox"] < 0.02 and one["contrast"] > 20 and one["text_area"] < 0.02
        assert len(one["hashes"]) == 24 and one["aesthetic"] is None
    (tmp_path / "x.mp4").write_text("x")
    with pytest.raises(Rejection, match="unreadable"):
        measure({"clip_id": "c", "path": str(tmp_path / "x.mp4"), "start": 0.0, "end": 1.0, "width": 64, "height": 64})


def test_the_aesthetic_head_reads_normalised_clip_features(tmp_path, picture):
    """A tiny CLIP of random weights, and a head that is known."""
    config = {
        "embed_dim": 8, "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
    }  # fmt: skip
    open_clip.factory._MODEL_CONFIGS["tiny-for-test"] = config
    torch.manual_seed(0)
    model, _, prepare = open_clip.create_model_and_transforms("tiny-for-test")
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    head = {"weight": torch.arange(8.0)[None], "bias": torch.tensor([5.0])}
    torch.save(head, tmp_path / "head.pt")
    settings = MeasureSettings(
        aesthetic_model="tiny-for-test", aesthetic_pretrained=str(tmp_path / "clip.pt"),
        aesthetic_head=str(tmp_path / "head.pt"),
    )  # fmt: skip
    from PIL import Image

    with torch.no_grad():
        features = model.eval().encode_image(prepare(Image.fromarray(picture))[None])
    expected = float((features / features.norm() @ torch.arange(8.0)) + 5)
    assert measures.open_aesthetic(settings)([picture]) == pytest.approx(expected, abs=1e-4)
    settings.aesthetic_head = str(tmp_path / "gone.pt")
    with pytest.raises(UserError, match=r"measures.aesthetic_model=tiny-for-test with .*gone.pt' cannot be loaded"):
        measures.open_aesthetic(settings)
