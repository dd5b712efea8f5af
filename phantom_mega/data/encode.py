"""Encoding of what shards hold: clips at a constant frame rate, and still images. Equal frames give equal bytes."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import av
from PIL import Image

from phantom_mega.errors import UserError


@dataclass(frozen=True)
class Codec:
    """How clips of a codec are written.

    Attributes:
        encoder: FFmpeg's name.
        container: FFmpeg's name of the format.
        extension: of the file.
        options: of the encoder. One thread: the same bytes at any number of cores.
        pixel_format: FFmpeg's name.
    """

    encoder: str
    container: str
    extension: str
    options: dict[str, str]
    pixel_format: str = "yuv420p"


CODECS = {
    # No hidden frames: as many packets as frames.
    "vp9": Codec(
        "libvpx-vp9",
        "webm",
        "webm",
        {"crf": "15", "b": "0", "cpu-used": "4", "g": "16", "auto-alt-ref": "0", "threads": "1"},
    ),
    # x264's macroblock tree gives other bytes at each run where sides are no multiples of 16.
    "h264": Codec("libx264", "mp4", "mp4", {"crf": "17", "preset": "medium", "mbtree": "0", "g": "16", "threads": "1"}),
    # Lossless, in RGB: decoding gives back every bit. For small synthetic clips; DALI does not decode it.
    "ffv1": Codec("ffv1", "matroska", "mkv", {"level": "3", "slicecrc": "1", "g": "1", "threads": "1"}, "bgr0"),
}


def find_codec(name: str) -> Codec:
    """The codec of a name.

    Raises:
        UserError: there is none of this name.
    """
    if name not in CODECS:
        raise UserError(f"codec {name!r} is unknown; use {' or '.join(CODECS)}")
    return CODECS[name]


def scaled_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Even (height, width) of the same aspect with the shorter side at most `short_side` pixels; never enlarged."""
    scale = min(1.0, short_side / min(height, width))
    return 2 * round(height * scale / 2), 2 * round(width * scale / 2)


def encode_frames(
    frames: Iterable[av.VideoFrame], fps: Fraction, height: int, width: int, codec: str = "vp9", **options: str
) -> tuple[bytes, int]:
    """Scale frames and encode them at a constant frame rate; one at a time is held.

    Args:
        frames: decoded frames, in order; their own times are not looked at.
        fps: frames per second of the clip.
        height, width: of the clip in pixels, even where chroma is subsampled (all but `ffv1`).
        codec: of `CODECS`.
        options: of the encoder, over those of the codec.

    Returns:
        (bytes, number of frames).

    Raises:
        UserError: an unknown codec.
    """
    how = find_codec(codec)
    buffer, count = io.BytesIO(), 0
    # bitexact: without it the muxer writes random identifiers, and no two runs give the same bytes.
    with av.open(buffer, "w", format=how.container, options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(how.encoder, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, how.pixel_format
        stream.options = how.options | options
        for count, frame in enumerate(frames, 1):
            scaled = frame.reformat(width, height, how.pixel_format, interpolation="AREA")
            if count == 1:
                # Without the matrix, readers would take that of another and shift all colours.
                stream.codec_context.colorspace = scaled.colorspace
                stream.codec_context.color_range = scaled.color_range
            scaled.pts, scaled.time_base = count - 1, 1 / fps
            container.mux(stream.encode(scaled))
        if count:
            container.mux(stream.encode())
    return buffer.getvalue(), count


def encode_clip(frames: list[av.VideoFrame], fps: Fraction, short_side: int) -> tuple[bytes, int, int]:
    """Encode frames as VP9 in WebM.

    Args:
        frames: decoded frames, in order.
        fps: frames per second of the clip.
        short_side: pixels of the shorter side; smaller clips keep their size.

    Returns:
        (bytes, height, width).
    """
    height, width = scaled_size(frames[0].height, frames[0].width, short_side)
    return encode_frames(frames, fps, height, width)[0], height, width


def encode_image(image: Image.Image) -> bytes:
    """JPEG bytes at quality 95 without chroma subsampling."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()
