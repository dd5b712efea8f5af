"""ViCLIP-T and CLIP-T: a hundred times the cosine of what is seen and what was asked for."""

import cv2
import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file

from phantom_mega.errors import UserError
from phantom_mega.evaluation import clip_t, viclip_t
from phantom_mega.evaluation.viclip import viclip_of
from phantom_mega.evaluation.viclip_t import spread_indices
from tests.evaluation.pictures import clip, item
from tests.evaluation.small_encoders import IMAGENET, viclip_weights, write_clip


def build(module, **given):
    ((settings, make),) = module.METRICS.values()
    return make(settings(**given), "cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """(file as ViCLIP's is published, its weights), with positions in time."""
    folder = tmp_path_factory.mktemp("viclip")
    made = viclip_weights(write_clip(folder, 32)[2])
    generator = torch.Generator().manual_seed(0)
    made["vision_encoder.temporal_positional_embedding"] = torch.randn(1, 8, 128, generator=generator)
    torch.save({"model": made, "epoch": 3}, folder / "viclip.pth")
    return folder / "viclip.pth", made


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


def test_eight_frames_are_shown_as_viclips_demo_does(weights):
    frames = clip("bikes")
    metric = build(viclip_t, weights=str(weights[0]))
    picked = frames[np.linspace(0, len(frames) - 1, 8).round().astype(int)]
    shown = (np.stack([cv2.resize(frame, (32, 32)) for frame in picked]) / 255 - IMAGENET[0]) / IMAGENET[1]
    model = viclip_of(weights[1], "here")
    with torch.no_grad():
        video = model.encode_video(torch.from_numpy(shown).float().permute(3, 0, 1, 2)[None])
        expected = torch.cosine_similarity(video, model.encode_text(["a man talks"])).item()
    measured = metric.measure(item(frames))
    assert measured.value == pytest.approx(100 * expected, abs=1e-3) and measured.missing == ""
    assert (metric.name, metric.title, metric.higher_is_better) == ("viclip_t", "ViCLIP-T", True)


def test_time_size_of_the_screen_and_the_file_format(weights, tmp_path):
    frames, metric = clip("carphone"), build(viclip_t, weights=str(weights[0]))
    value = metric.measure(item(frames)).value
    assert metric.measure(item(frames[::-1])).value != pytest.approx(value, abs=1e-3)
    assert metric.measure(item(frames, prompt="a rabbit in a meadow")).value != pytest.approx(value, abs=1e-3)
    doubled = frames.repeat(2, 1).repeat(2, 2)
    assert metric.measure(item(doubled)).value == pytest.approx(value, abs=1.5)
    save_file(weights[1], tmp_path / "viclip.safetensors")
    again = build(viclip_t, weights=str(tmp_path / "viclip.safetensors"))
    assert again.measure(item(frames)).value == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("changed", [{"fit": "crop"}, {"fit": "pad"}, {"normalization": "clip"}])
def test_what_the_model_is_shown_is_as_set(weights, changed):
    frames = clip("bikes")
    usual, other = (build(viclip_t, weights=str(weights[0]), **one) for one in ({}, changed))
    assert abs(usual.measure(item(frames)).value - other.measure(item(frames)).value) > 1e-3


def test_vbench_shows_its_frames_cut_and_normalized_as_clips(weights):
    frame = clip("bikes")[40]
    metric = build(viclip_t, weights=str(weights[0]), fit="crop", normalization="clip")
    published = image_transform_v2(PreprocessCfg(size=32), is_train=False)
    model = viclip_of(weights[1], "here")
    with torch.no_grad():
        picture = published(Image.fromarray(frame))
        expected = torch.cosine_similarity(
            model.encode_video(picture[None, :, None]), model.encode_text(["a man talks"])
        ).item()
    assert metric.measure(item(frame[None])).value == pytest.approx(100 * expected, abs=1e-3)


def test_a_short_video_shows_frames_twice_and_a_picture_once():
    assert spread_indices(1, 8).tolist() == [0]
    assert spread_indices(3, 8).tolist() == [0, 0, 1, 1, 1, 1, 2, 2]
    assert spread_indices(81, 8).tolist() == [0, 11, 23, 34, 46, 57, 69, 80]


def test_clip_t_is_the_mean_cosine_of_ten_frames(tiny_clip):
    name, weights, model = tiny_clip
    metric, frames = build(clip_t, model=name, pretrained=str(weights)), clip("bikes")
    measured = metric.measure(item(frames))
    with torch.no_grad():
        text = model.encode_text(open_clip.tokenize(["a man talks"])).double()
    features = metric.encode(frames[np.linspace(0, len(frames) - 1, 10).round().astype(int)])
    expected = torch.cosine_similarity(torch.from_numpy(features), text).mean().item()
    assert measured.value == pytest.approx(100 * expected, abs=1e-4)
    assert metric.measure(item(frames[::-1])).value == pytest.approx(measured.value, abs=1e-6)
    assert (metric.name, metric.title) == ("clip_t", "CLIP-T")


def test_a_case_without_prompt_counts_as_zero_and_says_so(weights, tiny_clip):
    case = item(clip("bikes")[:2], prompt="  ")
    for metric in (
        build(viclip_t, weights=str(weights[0])),
        build(clip_t, model=tiny_clip[0], pretrained=str(tiny_clip[1])),
    ):
        measured = metric.measure(case)
        assert measured.value == 0 and measured.missing == "the case has no prompt"


@pytest.mark.parametrize(("changed", "message"), [
    ({"weights": ""}, r"viclip_t\.weights='': no such file; get huggingface.co/OpenGVLab/ViCLIP"),
    ({"fit": "stretch"}, r"viclip_t\.fit='stretch'; use crop, pad or squash"),
    ({"normalization": "none"}, r"viclip_t\.normalization='none'; use imagenet or clip"),
    ({"dtype": "int8"}, r"viclip_t\.dtype='int8'"),
])  # fmt: skip
def test_a_wrong_setting_is_named(weights, changed, message):
    with pytest.raises(UserError, match=message):
        build(viclip_t, **{"weights": str(weights[0])} | changed)


def test_a_file_that_is_no_viclip_is_refused(tmp_path, tiny_clip):
    with pytest.raises(UserError, match=r"^viclip_t\.weights=.*holds no weights of a ViCLIP: .*conv1"):
        build(viclip_t, weights=str(tiny_clip[1]))
    (tmp_path / "page.pth").write_text("<html>")
    with pytest.raises(UserError, match=r"^viclip_t\.weights: .*cannot be read"):
        build(viclip_t, weights=str(tmp_path / "page.pth"))
