"""PyAV decoding: the planned frames in the right colours and geometry; bad input becomes a message."""

import re

import numpy as np
import pytest
import torch

from phantom_mega.config import DataConfig
from phantom_mega.data.decode import PyAVDecoder, make_decoder, probe_clip
from phantom_mega.data.decode_dali import DaliDecoder
from phantom_mega.errors import UserError
from tests.data.clips import (
    FRAMES,
    HEIGHT,
    WIDTH,
    make_item,
    reference_image,
    textured_frames,
    vp8_with_hidden_frames,
    write_clip,
    write_png,
)
from tests.media import CODECS, encode_clip

BT709, BT601, LIMITED, FULL = 1, 5, 1, 2


DECODERS = {"pyav": PyAVDecoder, "dali, else pyav": lambda: DaliDecoder(DataConfig(), torch.device("cpu"))}


def decode(clip, codec="vp9", **item):
    result = PyAVDecoder().decode_one(*make_item(clip, codec, **item))
    assert result.error is None, result.error
    return result


def to_bytes(video):
    """[3, F, h, w] in [-1, 1] to frames [F, h, w, 3] in [0, 255]."""
    return ((video.permute(1, 2, 3, 0) + 1) * 127.5).numpy()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("start", "stride"), [(0, 1), (5, 1), (0, 3)])
def test_frames_are_those_that_the_plan_names(frames, clips, codec, start, stride):
    video = decode(clips[codec], codec, target=(5, 48, 64), start=start, stride=stride).video
    assert video.shape == (3, 5, 48, 64) and video.dtype == torch.float32 and video.is_contiguous()
    number = (np.arange(start, start + 5) * stride * 12 % 250).astype(float)
    corner = to_bytes(video)[:, 2:8, 2:4].mean((1, 2, 3))  # the crop keeps part of the numbered corner
    assert np.abs(corner - number).max() < 5


def test_a_frame_asked_for_twice_is_given_twice(clips):
    sample, raw = make_item(clips["vp9"])
    sample = type(sample)(**{**sample.__dict__, "frame_indices": (2, 2, 4, 9, 13)})
    video = PyAVDecoder().decode_one(sample, raw).video
    assert torch.equal(video[:, 0], video[:, 1]) and not torch.equal(video[:, 1], video[:, 2])


@pytest.mark.parametrize("tags", [(BT601, LIMITED), (BT709, LIMITED), (BT601, FULL), (BT709, FULL)])
def test_colours_follow_the_matrix_and_range_that_the_clip_is_tagged_with(tags):
    colors = np.array([[220, 30, 30], [30, 200, 40], [40, 50, 220], [230, 220, 40]], dtype=np.uint8)
    frames = np.repeat(np.repeat(colors[None, None], 48, 1), 16, 2).repeat(FRAMES, 0)  # [F, 48, 64, 3]
    clip = write_clip(frames, colorspace=tags[0], color_range=tags[1])
    shown = to_bytes(decode(clip, source=(FRAMES, 48, 64), target=(5, 48, 64)).video)
    assert np.abs(shown[2, 24, 8::16] - colors).max() < 6


def test_hidden_vp8_frames_are_neither_counted_nor_shown(frames):
    clip = vp8_with_hidden_frames(textured_frames(40))
    item = make_item(clip, "vp8", source=(40, HEIGHT, WIDTH), target=(5, HEIGHT - 8, WIDTH), start=33)
    with pytest.raises(ValueError, match="holds 40 frames"):
        probe_clip(make_item(clip, "vp8", source=(41, HEIGHT, WIDTH))[1])
    result = PyAVDecoder().decode_one(*item)
    assert result.error is None
    assert np.abs(to_bytes(result.video)[0, 2:10, 4:20].mean() - 33 * 12 % 250) < 6


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_clips_are_turned_as_players_turn_them(frames, degrees):
    clip = write_clip(frames, "libx264", "mp4", rotation=degrees)
    turned = np.rot90(frames, degrees // 90, axes=(1, 2))
    source, target = (FRAMES, *turned.shape[1:3]), (5, 64, 48) if degrees != 180 else (5, 48, 64)
    shown = decode(clip, "h264", source=source, target=target).video
    plain = decode(write_clip(turned, "libx264", "mp4"), "h264", source=source, target=target).video
    assert (shown - plain).abs().mean() * 127.5 < 6


@pytest.mark.parametrize("name", ["zero_byte", "truncated", "one_frame", "audio_only", "variable_rate", "other_size",
                                  "no_media", "damaged"])  # fmt: skip
@pytest.mark.parametrize("decoder", DECODERS)
def test_a_bad_clip_is_named_and_moves_no_other_sample(clips, bad_clips, name, decoder):
    clip, message = bad_clips[name]
    good = [make_item(clips["vp9"], key=f"good_{i}", start=i, references=[reference_image()]) for i in range(3)]
    alone = DECODERS[decoder]().decode(good)
    items = [good[0], make_item(clip, key="bad", references=[reference_image()]), *good[1:]]
    results = DECODERS[decoder]().decode(items)
    assert [result.sample.key for result in results] == ["good_0", "bad", "good_1", "good_2"]
    bad = results.pop(1)
    assert re.search(f"shard-000007.tar, sample bad: .*({message})", bad.error)
    assert bad.video.shape == (3, 5, 48, 64) and bad.references.shape == (1, 3, 48, 64)
    assert not bad.video.any() and not bad.references.any()
    for result, expected in zip(results, alone, strict=True):
        assert result.error is None and torch.equal(result.video, expected.video)
        assert torch.equal(result.references, expected.references) and result.caption == expected.caption


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_bad_reference_or_still_is_named(clips, decoder):
    cut = reference_image()[:-200]
    items = [
        make_item(clips["vp9"], references=[reference_image(), cut]),
        make_item(cut, "jpeg", ext="jpg", source=(1, 40, 30), target=(1, 32, 32)),
        make_item(b"", "jpeg", ext="jpg", source=(1, 40, 30), target=(1, 32, 32)),
        make_item(clips["vp9"], references=[reference_image()], masks=[b"no image"]),
        make_item(clips["vp9"], references=[reference_image()]),
    ]
    errors = [result.error for result in DECODERS[decoder]().decode(items)]
    assert "reference 1: the image cannot be read" in errors[0]
    assert all("the image cannot be read" in error for error in errors[1:4]) and errors[4] is None


def test_outside_of_a_mask_becomes_white(clips):
    mask = np.zeros((40, 30), dtype=np.uint8)
    mask[10:30, 10:20] = 255
    item = make_item(clips["vp9"], references=[reference_image()], masks=[write_png(mask)])
    crop = PyAVDecoder().decode_one(*item).crops[0]
    assert (crop[mask == 0] == 255).all() and not (crop[mask == 255] == 255).all()


def test_threads_do_not_change_the_result(clips):
    items = [make_item(clips["h264"], "h264", start=i) for i in range(3)]
    for one, many in zip(PyAVDecoder(1).decode(items), PyAVDecoder(3).decode(items), strict=True):
        assert torch.equal(one.video, many.video)


def test_a_dropped_frame_makes_the_rate_variable_and_rounded_times_do_not(frames):
    probe_clip(make_item(encode_clip(frames, "vp9", fps=30))[1])  # webm rounds 33.3 ms to 33 and 34
    with pytest.raises(ValueError, match="frame rate varies"):
        probe_clip(make_item(encode_clip(frames, "vp9", pts=[*range(7), *range(8, 15)]))[1])


def test_an_unknown_decoder_is_an_error_that_names_the_known_ones():
    with pytest.raises(UserError, match="use auto, dali or pyav"):
        make_decoder(DataConfig(decoder="opencv"))


def test_on_a_cpu_pyav_decodes_unless_dali_is_asked_for():
    assert isinstance(make_decoder(DataConfig()), PyAVDecoder)
    assert isinstance(make_decoder(DataConfig(decoder="dali")), DaliDecoder)
