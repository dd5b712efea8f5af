"""VBench's consistency of features, and of subject and background by real models of random weights."""

import json

import numpy as np
import open_clip
import pytest
import torch
import torchvision
import transformers

from phantom_mega.errors import UserError
from phantom_mega.evaluation import background_consistency, subject_consistency
from phantom_mega.evaluation.consistency import consistency, too_short
from phantom_mega.evaluation.pixels import CHUNK, clip_pixels, dino_pixels
from tests.evaluation.items import drift, item, still, texture

CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 224, "layers": 1, "width": 24, "head_width": 12, "patch_size": 32},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    """Folder of a small DINO of random weights, as ViTModel writes it: with no pooler."""
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    small = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = transformers.ViTConfig(**small, initializer_range=0.5)  # wide, so that frames differ in their features
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """(name, file of weights) of a small CLIP of random weights."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "tiny-metric.json").write_text(json.dumps(CLIP))
    open_clip.add_model_config(folder / "tiny-metric.json")
    torch.manual_seed(0)
    torch.save(open_clip.create_model("tiny-metric").state_dict(), folder / "clip.pt")
    return "tiny-metric", str(folder / "clip.pt")


def subject(folder):
    return subject_consistency.build(subject_consistency.SubjectConsistencySettings(str(folder)), "cpu")


def background(name, weights):
    return background_consistency.build(background_consistency.BackgroundConsistencySettings(name, weights), "cpu")


def test_frames_are_compared_with_the_first_and_with_the_one_before():
    turned = np.array([[1, 0], [0, 1], [0, 2]])  # a quarter turn, then standing still at twice the length
    assert consistency(turned) == pytest.approx((0 + 0) / 4 + (0 + 1) / 4)
    half = np.array([[1, 0], [np.cos(1), np.sin(1)], [np.cos(2), np.sin(2)]])
    assert consistency(half) == pytest.approx((2 * np.cos(1) + np.cos(1) + 0) / 4)  # cos(2) < 0 counts as zero
    assert consistency(np.array([[1.0, 0], [-1, 0], [1, 0]])) == pytest.approx((0 + 0 + 1 + 0) / 4)  # so does the step


def test_features_without_a_direction_and_single_frames_have_no_consistency():
    with pytest.raises(ValueError, match="no direction"):
        consistency(np.array([[1.0, 0], [0, 0]]))
    with pytest.raises(ValueError, match="takes 2"):
        consistency(np.ones((1, 4)))
    assert too_short(2, 2) is None
    assert too_short(1, 2).missing == "the video has 1 frame; the metric needs 2"


def test_the_class_token_of_dino_is_compared(dino):
    frames = drift(texture(), 20, CHUNK + 2)
    model = transformers.ViTModel.from_pretrained(dino, add_pooling_layer=False).eval()
    with torch.no_grad():
        tokens = [model(dino_pixels(f[None]), interpolate_pos_encoding=True).last_hidden_state[0, 0] for f in frames]
    expected = consistency(torch.stack(tokens).numpy())
    assert subject(dino).measure(item(frames)).value == pytest.approx(expected, abs=1e-5)
    assert expected < 0.99


def test_the_image_feature_of_clip_is_compared(clip):
    frames = drift(texture(), 20)
    model = open_clip.create_model(clip[0], pretrained=clip[1]).eval()
    with torch.no_grad():
        expected = consistency(model.encode_image(clip_pixels(frames)).numpy())
    assert background(*clip).measure(item(frames)).value == pytest.approx(expected, abs=1e-5)
    assert expected < 0.9999


def test_a_still_video_is_wholly_consistent_and_a_cut_is_not(dino, clip):
    cut = np.concatenate([still(texture(seed=1), 4), still(255 - texture(seed=2), 4)])
    for metric in (subject(dino), background(*clip)):
        assert metric.measure(item(still(texture()))).value == pytest.approx(1, abs=1e-5)
        assert metric.measure(item(cut)).value < 0.9999
        short = metric.measure(item(still(texture(), 1)))
        assert (short.value, bool(short.missing)) == (0, True)


def test_pixels_are_those_of_vbenchs_transforms():
    frames = drift(texture(300, 500), 7, 2)
    floats = torch.Tensor(frames).permute(0, 3, 1, 2)
    of = torchvision.transforms
    clip = of.Compose([
        of.Resize(224, interpolation=of.InterpolationMode.BICUBIC, antialias=False), of.CenterCrop(224),
        of.Lambda(lambda x: x / 255), of.Normalize(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD),
    ])  # fmt: skip
    dino = of.Compose([
        of.Resize(224, antialias=False), of.Lambda(lambda x: x / 255),
        of.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    torch.testing.assert_close(clip_pixels(frames), clip(floats))
    torch.testing.assert_close(dino_pixels(frames), dino(floats))
    assert dino_pixels(frames).shape == (2, 3, 224, 373)


def test_models_that_cannot_be_used_are_named_with_where_to_get_them(tmp_path, clip):
    with pytest.raises(UserError, match=r"subject_consistency\.model=.*facebook/dino-vitb16"):
        subject(tmp_path)
    transformers.CLIPVisionConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"subject_consistency\.model=.*clip_vision_model.*DINO is a 'vit'"):
        subject(tmp_path)
    with pytest.raises(UserError, match=r"background_consistency\.pretrained is not set"):
        background(clip[0], "")
    with pytest.raises(UserError, match=r"background_consistency\.model='ViT-B-23'.*did you mean"):
        background("ViT-B-23", "openai")


def test_a_clip_of_another_size_than_vbenchs_is_refused(tmp_path):
    config = CLIP | {"vision_cfg": CLIP["vision_cfg"] | {"image_size": 64}}
    (tmp_path / "tiny-metric-64.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-metric-64.json")
    torch.save(open_clip.create_model("tiny-metric-64").state_dict(), tmp_path / "clip.pt")
    with pytest.raises(UserError, match="use a model of 224"):
        background("tiny-metric-64", str(tmp_path / "clip.pt"))
