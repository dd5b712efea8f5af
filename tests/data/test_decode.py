"""PyAV decoding and images: the planned frames in the right colours and geometry; bad input becomes a message."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from phantom_mega.config import DataConfig
from phantom_mega.data.decode import PyAVDecoder, cover_crop, make_decoder, open_image, pad_white, probe_clip
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
    write_jpeg,
    write_png,
)
from tests.media import CODECS, draw_frames, encode_clip

BT709, BT601, LIMITED, FULL = 1, 5, 1, 2


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
@pytest.mark.parametrize("decoder", ["pyav", "auto"])
def test_a_bad_clip_is_named_and_moves_no_other_sample(clips, bad_clips, name, decoder):
    clip, message = bad_clips[name]
    good = [make_item(clips["vp9"], key=f"good_{i}", start=i, references=[reference_image()]) for i in range(3)]
    alone = make_decoder(DataConfig(decoder=decoder)).decode(good)
    items = [good[0], make_item(clip, key="bad", references=[reference_image()]), *good[1:]]
    results = make_decoder(DataConfig(decoder=decoder)).decode(items)
    assert [result.sample.key for result in results] == ["good_0", "bad", "good_1", "good_2"]
    bad = results.pop(1)
    assert re.search(f"shard-000007.tar, sample bad: .*({message})", bad.error)
    assert bad.video.shape == (3, 5, 48, 64) and bad.references.shape == (1, 3, 48, 64)
    assert not bad.video.any() and not bad.references.any()
    for result, expected in zip(results, alone, strict=True):
        assert result.error is None and torch.equal(result.video, expected.video)
        assert torch.equal(result.references, expected.references) and result.caption == expected.caption


@pytest.mark.parametrize("decoder", ["pyav", "auto"])
def test_a_bad_reference_or_still_is_named(clips, decoder):
    cut = reference_image()[:-200]
    items = [
        make_item(clips["vp9"], references=[reference_image(), cut]),
        make_item(cut, "jpeg", ext="jpg", source=(1, 40, 30), target=(1, 32, 32)),
        make_item(b"", "jpeg", ext="jpg", source=(1, 40, 30), target=(1, 32, 32)),
        make_item(clips["vp9"], references=[reference_image()], masks=[b"no image"]),
        make_item(clips["vp9"], references=[reference_image()]),
    ]
    errors = [result.error for result in make_decoder(DataConfig(decoder=decoder)).decode(items)]
    assert "reference 1: the image cannot be read" in errors[0]
    assert all("the image cannot be read" in error for error in errors[1:4]) and errors[4] is None


def test_a_clip_covers_its_target_and_keeps_its_centre():
    picture = torch.zeros(3, 60, 120, dtype=torch.uint8)
    picture[:, 20:40, 50:70] = 255  # a square in the middle stays square
    shown = cover_crop(picture, 32, 32)
    assert shown.shape == (3, 32, 32)
    bright = (shown[0] > 127).nonzero()
    assert (bright.float().mean(0) - 15.5).abs().max() < 0.6
    extent = bright.max(0).values - bright.min(0).values + 1
    assert abs(int(extent[0]) - int(extent[1])) <= 1 and abs(int(extent[0]) - 32 * 20 / 60) <= 1


def test_scaling_down_is_antialiased():
    stripes = torch.zeros(3, 64, 64, dtype=torch.uint8)
    stripes[..., 1::4] = 255  # one of the two columns that plain bilinear reads
    shown = cover_crop(stripes, 16, 16).float()[..., 2:-2]
    assert (shown - 255 / 4).abs().max() < 20


@pytest.mark.parametrize(("height", "width"), [(40, 20), (20, 40), (33, 33), (300, 10)])
def test_references_keep_their_aspect_and_are_centred_on_white(height, width):
    shown = pad_white(torch.zeros(3, height, width, dtype=torch.uint8), 48, 64)
    assert shown.shape == (3, 48, 64)
    black = (shown[0] < 128).nonzero()
    low, high = black.min(0).values, black.max(0).values + 1
    scale = min(48 / height, 64 / width)
    assert abs((high - low)[0] - height * scale) <= 1 and abs((high - low)[1] - width * scale) <= 1
    assert (low + high - torch.tensor([48, 64])).abs().max() <= 1
    assert set(shown.unique().tolist()) <= {0, 255}


def test_images_come_as_8_bit_rgb_whatever_they_are_stored_as():
    picture = draw_frames(1, 30, 44)[0]
    image = Image.fromarray(picture)
    grey = np.asarray(image.convert("L"))
    assert np.array_equal(open_image(write_png(picture)), picture)
    assert np.array_equal(open_image(write_png(grey))[..., 1], grey)
    assert np.array_equal(open_image(write_png(grey.astype(np.uint16) * 257))[..., 2], grey)
    for mode in ("RGB", "CMYK"):
        assert np.abs(open_image(write_jpeg(image.convert(mode))).astype(int) - picture).mean() < 5
    palette = open_image(write_png(np.asarray(image.quantize(8).convert("RGB"))))
    assert palette.shape == picture.shape


def test_transparency_becomes_white():
    rgba = np.zeros((20, 20, 4), dtype=np.uint8)
    rgba[..., 3] = np.repeat([0, 128, 255, 255], 5)[None]
    shown = open_image(write_png(rgba))[0, ::5, 0]
    assert shown[0] == 255 and abs(int(shown[1]) - 127) <= 1 and shown[2] == 0
    palette = Image.fromarray(np.zeros((4, 4), dtype=np.uint8), "L").convert("P")
    palette.info["transparency"] = 0
    assert (open_image(write_png(np.asarray(palette.convert("RGBA")))) == 255).all()


def test_images_are_turned_by_exif():
    picture, exif = draw_frames(1, 30, 44)[0], Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    shown = open_image(write_jpeg(Image.fromarray(picture), exif=exif))
    assert shown.shape == (44, 30, 3)
    assert np.abs(shown.astype(int) - np.rot90(picture, -1)).mean() < 4


def test_outside_of_a_mask_becomes_white(clips):
    mask = np.zeros((40, 30), dtype=np.uint8)
    mask[10:30, 10:20] = 255
    item = make_item(clips["vp9"], references=[reference_image()], masks=[write_png(mask)])
    crop = PyAVDecoder().decode_one(*item).crops[0]
    assert (crop[mask == 0] == 255).all() and not (crop[mask == 255] == 255).all()


def test_an_image_bomb_is_refused_unread():
    bomb = write_png(np.zeros((12_000, 12_000), dtype=np.uint8), optimize=False)
    with pytest.raises(ValueError, match=r"12000x12000 pixels; \d+ are the most"):
        open_image(bomb)


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
