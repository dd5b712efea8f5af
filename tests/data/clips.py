"""Real encoded samples for the tests of decoding and loading: any codec, colour, rotation, and damage."""

import io
from fractions import Fraction

import av
import numpy as np
from PIL import Image

from phantom_mega.data.plan import PlannedSample
from phantom_mega.data.schema import Reference, ReferenceSource, Triplet
from phantom_mega.data.shards import RawTriplet
from phantom_mega.geometry import SampleShape, token_grid
from tests.media import CODECS, draw_frames, encode_image

FRAMES, HEIGHT, WIDTH = 14, 72, 128


def textured_frames(count=FRAMES, height=HEIGHT, width=WIDTH, seed=0):
    """Drawn frames with a number in each: its brightness in the top left corner, 12 levels a frame."""
    frames = draw_frames(count, height, width, seed)
    frames[:, : height // 4, : width // 4] = (np.arange(count) * 12 % 250).astype(np.uint8)[:, None, None, None]
    return frames


def write_clip(frames, codec="libvpx-vp9", container="webm", pixel_format="yuv420p", rotation=0, **tags):
    """Encode with any settings: `colorspace` and `color_range` are converted to and tagged."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=24)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixel_format
        if codec.startswith("libvpx"):
            stream.options = {"deadline": "realtime", "cpu-used": "8", "crf": "8", "b": "2M"}
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        if rotation:
            stream.set_display_rotation(rotation)
        for array in frames:
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            if tags:
                frame = frame.reformat(format=pixel_format, **{f"dst_{name}": value for name, value in tags.items()})
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def vp8_with_hidden_frames(frames):
    """VP8 in two passes, whose alternative reference frames are packets that are never shown."""

    def encode(flag, stats=None):
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="webm") as output:
            stream = output.add_stream("libvpx", rate=24)
            stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
            stream.bit_rate = 400_000
            stream.options = {"auto-alt-ref": "1", "lag-in-frames": "25", "deadline": "good", "arnr-maxframes": "7"}
            stream.codec_context.flags |= flag
            if stats:
                stream.codec_context.stats_in = stats
            for array in frames:
                output.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
            for packet in stream.encode(None):
                output.mux(packet)
            stats = stream.codec_context.stats_out
        return buffer.getvalue(), stats

    first_pass, second_pass = 1 << 9, 1 << 10  # AV_CODEC_FLAG_PASS1, AV_CODEC_FLAG_PASS2
    return encode(second_pass, encode(first_pass)[1])[0]


def damage_frame(clip, number):
    """The clip with the header of one frame overwritten; the container stays whole."""
    with av.open(io.BytesIO(clip)) as container:
        packet = bytes([packet for packet in container.demux(video=0) if packet.size][number])
    return clip.replace(packet, bytes(8) + packet[8:])


def audio_only():
    """An Opus track in WebM."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="webm") as output:
        stream = output.add_stream("libopus", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), format="flt", layout="mono")
        frame.rate, frame.time_base = 48000, Fraction(1, 48000)
        for i in range(20):
            frame.pts = 960 * i
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def reference_image(height=40, width=30, seed=3):
    """JPEG bytes of a smooth picture."""
    return encode_image(draw_frames(1, height, width, seed)[0], quality=95)


def make_item(
    clip, codec="vp9", *, key="clip_0", ext=None, source=(FRAMES, HEIGHT, WIDTH), target=(5, 48, 64), start=0, stride=1,
    references=(), masks=None,
):  # fmt: skip
    """(PlannedSample, RawTriplet) of encoded bytes.

    Args:
        source: (frames, height, width) that the index says.
        target: (frames, height, width) to train on.
        references: bytes of each.
    """
    described = tuple(
        Reference("a thing", "others", "cross", ReferenceSource("v", 0, (0, 0, 9, 9)), 40, 30, masks is not None)
        for _ in references
    )
    triplet = Triplet(
        key, f"caption of {key}", "video", source[0], 24.0 * (source[0] > 1), *source[1:], codec, described, 4
    )
    ext = ext or CODECS.get(codec, ("", "mp4"))[1]
    raw = RawTriplet(triplet, clip, ext, list(references), list(masks or [None] * len(references)), "shard-000007.tar")
    frames, height, width = target
    shape = SampleShape(*token_grid(*target), len(references), 4, 4)
    indices = tuple((start + i) * stride for i in range(frames))
    sample = PlannedSample(0, key, height, width, frames, indices, tuple(range(len(references))), 4, 0, shape)
    return sample, raw


def write_png(array, **options):
    """PNG bytes; uint16 arrays become 16-bit PNGs."""
    return encode_image(array, "PNG", **options)


def write_jpeg(image: Image.Image, **options):
    """JPEG bytes of a PIL image in its own mode."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()
