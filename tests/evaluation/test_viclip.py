"""ViCLIP's architecture against CLIP's, whose weights it is made of, and against the published order of operations."""

import dataclasses

import open_clip
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from phantom_mega.errors import UserError
from phantom_mega.evaluation.viclip import ViClip, ViClipConfig, config_of, viclip_of
from tests.evaluation.small_encoders import viclip_weights, write_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny CLIP of open_clip with texts of 32 tokens."""
    return write_clip(tmp_path_factory.mktemp("clip"), 32)[2]


@pytest.fixture(scope="module")
def model(clip):
    return viclip_of(viclip_weights(clip), "here")


def rolled(clip, position):
    """ViCLIP of the weights of a CLIP and these positions in time [frames, width]."""
    return viclip_of(viclip_weights(clip) | {"vision_encoder.temporal_positional_embedding": position[None]}, "here")


@torch.no_grad()
def test_of_a_picture_and_of_a_text_it_is_the_clip_it_is_made_of(clip, model):
    pictures = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(model.encode_video(pictures[:, :, None]), clip.encode_image(pictures), atol=1e-5)
    texts = ["a man talks", "", "Ein  Hund &amp; a cat " * 30]
    tokens = SimpleTokenizer(context_length=32)(texts)
    assert torch.allclose(model.encode_text(texts), clip.encode_text(tokens), atol=1e-5)


@pytest.mark.parametrize("count", [8, 1])
@torch.no_grad()
def test_patches_of_all_frames_attend_to_each_other_in_the_published_order(clip, count):
    time = torch.randn(8, 128, generator=torch.Generator().manual_seed(1))
    video = torch.randn(2, 3, count, 32, 32, generator=torch.Generator().manual_seed(2))
    # As published, with CLIP's own modules: positions in the frame, then in time, one class token, frames innermost.
    visual = clip.visual
    frames = video.transpose(1, 2).flatten(0, 1)  # (b t)
    x = visual.conv1(frames).flatten(2).transpose(1, 2) + visual.positional_embedding[1:]
    x = x.unflatten(0, (2, count)).transpose(1, 2) + (time if count == 8 else time.mean(0))  # b n t m
    first = (visual.class_embedding + visual.positional_embedding[0]).expand(2, 1, -1)
    x = visual.transformer(visual.ln_pre(torch.cat([first, x.flatten(1, 2)], 1)))
    expected = visual.ln_post(x)[:, 0] @ visual.proj
    assert torch.allclose(rolled(clip, time).encode_video(video), expected, atol=1e-5)


@torch.no_grad()
def test_order_in_time_matters_by_the_positions_in_time_alone(clip, model):
    video = torch.randn(1, 3, 8, 32, 32, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(model.encode_video(video), model.encode_video(video.flip(2)), atol=1e-5)
    timed = rolled(clip, torch.randn(8, 128, generator=torch.Generator().manual_seed(4)))
    assert not torch.allclose(timed.encode_video(video), timed.encode_video(video.flip(2)), atol=1e-3)


@torch.no_grad()
def test_videos_do_not_see_each_other(model):
    videos = torch.randn(3, 3, 8, 32, 32, generator=torch.Generator().manual_seed(5))
    assert torch.allclose(
        model.encode_video(videos), torch.cat([model.encode_video(one[None]) for one in videos]), atol=1e-5
    )
    texts = ["a man talks", "a dog", "a much longer text about a rabbit in a meadow"]
    assert torch.allclose(model.encode_text(texts), torch.cat([model.encode_text([one]) for one in texts]), atol=1e-5)


def test_the_published_size_is_that_of_clips_vit_l_14():
    with torch.device("meta"):
        large, clip = ViClip(ViClipConfig()), open_clip.create_model("ViT-L-14-quickgelu", device="meta")
    shapes = {name: tuple(value.shape) for name, value in large.state_dict().items()}
    expected = {f"vision_encoder.{name}": tuple(value.shape) for name, value in clip.visual.state_dict().items()} | {
        "vision_encoder.temporal_positional_embedding": (1, 8, 1024),
        "vision_encoder.conv1.weight": (1024, 3, 1, 14, 14),
    }
    text = {
        n: tuple(v.shape) for n, v in clip.state_dict().items() if not n.startswith("visual.") and n != "logit_scale"
    }
    expected |= {f"text_encoder.{name}": shape for name, shape in text.items() if name != "attn_mask"}
    assert shapes == expected | {"text_encoder.positional_embedding": (32, 768)}
    assert large.vision_encoder.transformer.resblocks[0].attn.num_heads == 16
    assert large.text_encoder.transformer.resblocks[0].attn.num_heads == 12


def test_sizes_are_read_from_the_weights():
    small = ViClipConfig(32, 8, 5, 64, 3, 128, 1, 7, 99, 24)
    assert config_of(ViClip(small).state_dict()) == small
    assert config_of(ViClip(dataclasses.replace(small, layers=1)).state_dict()).layers == 1


@pytest.mark.parametrize(("change", "message"), [
    (lambda weights: weights.pop("vision_encoder.ln_post.bias"), r"there holds no weights of a ViCLIP: .*ln_post.bias"),
    (lambda weights: weights.pop("text_encoder.token_embedding.weight"), "no weights of a ViCLIP: .*token_embedding"),
    (lambda weights: weights.update(odd=torch.zeros(1)), "no weights of a ViCLIP: .*odd"),
    (lambda weights: weights.update({"vision_encoder.conv1.weight": torch.zeros(64, 3, 8, 8)}), "ViCLIP: .*unpack"),
])  # fmt: skip
def test_weights_of_something_else_are_refused(clip, change, message):
    weights = viclip_weights(clip)
    assert "temp" in weights
    change(weights)
    with pytest.raises(UserError, match=message):
        viclip_of(weights, "there")
