"""Fixtures of decoding and loading: good clips of every codec, and the bad ones that must be named."""

import pytest

from tests.data.clips import audio_only, damage_frame, textured_frames
from tests.media import CODECS, encode_clip


@pytest.fixture(scope="session")
def frames():
    """uint8 [14, 72, 128, 3]."""
    return textured_frames()


@pytest.fixture(scope="session")
def clips(frames):
    """Codec -> encoded bytes of `frames`."""
    return {codec: encode_clip(frames, codec) for codec in CODECS}


@pytest.fixture(scope="session")
def bad_clips(frames, clips):
    """Name -> (bytes, what the message must say)."""
    vp9 = clips["vp9"]
    uneven = encode_clip(frames, "vp9", pts=[0, 1, 2, 3, 7, 8, 9, 14, 15, 16, 17, 25, 26, 27])
    return {
        "zero_byte": (b"", "zero bytes"),
        "truncated": (vp9[: len(vp9) // 3], "the index says 14; is it truncated"),
        "one_frame": (encode_clip(frames[:1], "vp9"), "holds 1 frames, the index says 14"),
        "audio_only": (audio_only(), "no video stream"),
        "variable_rate": (uneven, "frame rate varies"),
        "other_size": (encode_clip(frames[:, ::2, ::2], "vp9"), "shows 64x36 pixels .*index says 128x72"),
        "no_media": (b"<html>not found</html>" * 40, "cannot be opened"),
        "damaged": (damage_frame(vp9, 3), "cannot be decoded"),
    }
