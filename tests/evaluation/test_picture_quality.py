"""Aesthetic and imaging quality: the published normalizations, and MUSIQ against scores of its own public code."""

import json

import numpy as np
import open_clip
import pytest
import torch

from phantom_mega.errors import UserError
from phantom_mega.evaluation import aesthetic_quality, imaging_quality
from phantom_mega.evaluation.aesthetic_quality import AestheticQuality, aesthetic_score, load_head
from phantom_mega.evaluation.imaging_quality import ImagingQuality, musiq_pixels
from phantom_mega.evaluation.musiq import Musiq, grid_places, patches, same_padding
from phantom_mega.evaluation.pixels import clip_pixels
from tests.evaluation.items import item, still, texture
from tests.evaluation.test_consistency import CLIP


def fill(model):
    """Weights that are the same everywhere: normal numbers by the order of names, scales of norms around one."""
    rng = np.random.default_rng(0)
    for name, tensor in sorted(model.state_dict().items()):
        drawn = rng.standard_normal(tuple(tensor.shape), dtype=np.float32) * (0.02 if tensor.ndim > 1 else 0.1)
        scale = name.split(".")[-2].startswith(("gn", "norm", "encoder_norm")) and name.endswith("weight")
        tensor.copy_(torch.from_numpy(drawn) + scale)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def musiq():
    return fill(Musiq())


# -- aesthetic quality


def test_the_head_sees_directions_and_its_scores_are_divided_by_ten():
    features = np.array([[3.0, 4.0], [0.0, 2.0]])
    assert aesthetic_score(features, np.array([5.0, 10.0]), 1.0) == pytest.approx(((3 + 8 + 1) + (10 + 1)) / 2 / 10)


def test_frames_are_scored_by_clip_and_the_head_of_the_file(tmp_path):
    (tmp_path / "tiny-aesthetic.json").write_text(json.dumps(CLIP))
    open_clip.add_model_config(tmp_path / "tiny-aesthetic.json")
    torch.manual_seed(0)
    model, head = open_clip.create_model("tiny-aesthetic").eval(), torch.nn.Linear(16, 1)
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    torch.save(head.state_dict(), tmp_path / "head.pth")
    frames = np.stack([texture(seed=seed) for seed in range(3)])
    with torch.no_grad():
        features = torch.nn.functional.normalize(model.encode_image(clip_pixels(frames)), dim=-1)
        expected = (head(features).squeeze() / 10).mean().item()
    files = str(tmp_path / "clip.pt"), str(tmp_path / "head.pth")
    settings = aesthetic_quality.AestheticQualitySettings("tiny-aesthetic", *files)
    assert aesthetic_quality.build(settings, "cpu").measure(item(frames)).value == pytest.approx(expected, abs=1e-5)


def test_heads_that_cannot_be_used_are_named_with_where_to_get_them(tmp_path):
    with pytest.raises(UserError, match=r"aesthetic_quality\.head is not set.*sa_0_4_vit_l_14_linear"):
        aesthetic_quality.build(aesthetic_quality.AestheticQualitySettings(), "cpu")
    with pytest.raises(UserError, match="there is no such file"):
        load_head(str(tmp_path / "none.pth"), 768)
    mlp = torch.nn.Sequential(torch.nn.Linear(768, 8), torch.nn.Linear(8, 1))
    torch.save(mlp.state_dict(), tmp_path / "mlp.pth")
    with pytest.raises(UserError, match=r"it holds 0\.bias.* instead of weight and bias.*LAION-AI"):
        load_head(str(tmp_path / "mlp.pth"), 768)
    torch.save(torch.nn.Linear(512, 1).state_dict(), tmp_path / "b32.pth")
    with pytest.raises(UserError, match=r"its weight is \[1, 512\].*\[1, 768\]"):
        load_head(str(tmp_path / "b32.pth"), 768)


def test_features_are_brought_to_length_one_before_the_head():
    metric = AestheticQuality(lambda pixels: torch.ones(len(pixels), 4), np.full(4, 2.0), 0.0, "cpu")
    assert metric.measure(item(still(texture()))).value == pytest.approx(0.4)  # direction (1/2, ...) times 2


# -- imaging quality


@pytest.mark.parametrize(
    ("size", "bright", "score"),
    [
        ((144, 176), 1.0, 0.3327582776546478),
        ((144, 176), 0.3, 0.23243427276611328),
        ((97, 351), 1.0, 0.3749275505542755),
    ],
)
def test_musiq_scores_as_its_public_code_does(musiq, size, bright, score):
    # `score`: of pyiqa 0.1.16's MUSIQ in eval mode with the weights of `fill`
    picture = torch.from_numpy(np.random.default_rng(1).random((1, 3, *size), dtype=np.float32))
    assert musiq(picture * bright).item() == pytest.approx(score, abs=2e-5)


def test_a_batch_scores_like_its_pictures_alone(musiq):
    pictures = torch.rand(3, 3, 60, 90, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([musiq(picture[None]) for picture in pictures])
    torch.testing.assert_close(musiq(pictures), alone, atol=1e-5, rtol=0)
    assert alone.std() > 1e-4


def test_patches_are_padded_around_and_hashed_to_a_grid():
    cut, places = patches(torch.ones(1, 3, 40, 64))
    assert cut.shape == (1, 4, 3, 32, 32) and places.tolist() == [0, 5, 50, 55]
    assert (
        cut[0, 0, 0, :, 0].tolist() == [0.0] * 12 + [1.0] * 20 and cut[0, 2, 0, -13:, 0].tolist() == [1.0] + [0.0] * 12
    )
    assert grid_places(1, 20).tolist() == [i // 2 for i in range(20)]
    assert same_padding(torch.ones(1, 1, 32, 32), 7, 2).shape == (1, 1, 37, 37)


def test_only_frames_larger_than_512_pixels_are_scaled_down():
    assert musiq_pixels(still(texture(144, 176), 1)).shape == (1, 3, 144, 176)
    assert musiq_pixels(still(texture(720, 1280), 1)).shape == (1, 3, 288, 512)
    assert musiq_pixels(still(texture(400, 640), 1)).shape == (1, 3, 320, 512)  # the longer side counts
    assert musiq_pixels(still(np.full((8, 8, 3), 255, np.uint8), 1)).max() == 1


def test_the_mean_over_frames_is_divided_by_a_hundred():
    brightness = ImagingQuality(lambda pictures: pictures.mean((1, 2, 3)) * 100, "cpu")
    frames = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (0, 255, 255, 0)])
    assert brightness.measure(item(frames)).value == pytest.approx(0.5)


def test_musiq_is_read_from_its_file_and_scores_frames(tmp_path, musiq):
    torch.save({f"module.{name}": tensor for name, tensor in musiq.state_dict().items()}, tmp_path / "musiq.pth")
    settings = imaging_quality.ImagingQualitySettings(str(tmp_path / "musiq.pth"))
    frames = np.stack([texture(64, 96, seed) for seed in range(2)])
    expected = float(musiq(musiq_pixels(frames)).mean()) / 100
    assert imaging_quality.build(settings, "cpu").measure(item(frames)).value == pytest.approx(expected, abs=1e-6)


def test_weights_of_musiq_that_cannot_be_used_are_named_with_where_to_get_them(tmp_path):
    def build(path):
        return imaging_quality.build(imaging_quality.ImagingQualitySettings(path), "cpu")

    with pytest.raises(UserError, match=r"imaging_quality\.weights is not set.*musiq_spaq_ckpt"):
        build("")
    with pytest.raises(UserError, match=r"imaging_quality\.weights=.*no such file.*musiq_spaq_ckpt"):
        build(str(tmp_path / "none.pth"))
    (tmp_path / "text.pth").write_text("not found")
    with pytest.raises(UserError, match=r"imaging_quality\.weights=.*cannot be used.*musiq_spaq_ckpt"):
        build(str(tmp_path / "text.pth"))
    torch.save({"head.weight": torch.zeros(10, 384)}, tmp_path / "ava.pth")
    with pytest.raises(UserError, match=r"imaging_quality\.weights=.*cannot be used.*Missing key"):
        build(str(tmp_path / "ava.pth"))
