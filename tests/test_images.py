"""Still images: their colours, turns and transparency, and how they are fitted into a frame."""

import numpy as np
import pytest
import torch
from PIL import Image

from phantom_mega.images import cover_crop, open_image, pad_white
from tests.data.clips import write_jpeg, write_png
from tests.media import draw_frames


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


def test_an_image_bomb_is_refused_unread():
    bomb = write_png(np.zeros((12_000, 12_000), dtype=np.uint8), optimize=False)
    with pytest.raises(ValueError, match=r"12000x12000 pixels; \d+ are the most"):
        open_image(bomb)
