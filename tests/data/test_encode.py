"""Lossless clips: every bit comes back, at odd sizes too, and equal frames give equal bytes."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from phantom_mega.data.encode import encode_frames, find_codec
from phantom_mega.errors import UserError


@pytest.mark.parametrize("size", [(32, 32), (31, 45), (16, 16)])
def test_ffv1_gives_back_every_bit(size):
    frames = np.random.default_rng(1).integers(0, 256, (9, *size, 3), dtype=np.uint8)
    pictures = [av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in frames]
    clips = {encode_frames(pictures, Fraction(8), *size, "ffv1") for _ in range(2)}
    [(clip, count)] = clips
    with av.open(io.BytesIO(clip)) as container:
        assert container.format.name.startswith("matroska") and find_codec("ffv1").extension == "mkv"
        stored = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert count == 9 and np.array_equal(stored, frames)


def test_an_unknown_codec_is_named():
    with pytest.raises(UserError, match="codec 'ffv2' is unknown; use vp9 or h264 or ffv1"):
        find_codec("ffv2")
