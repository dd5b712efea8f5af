"""What a generated video is written as: an H.264 file, a small GIF, a card with its references, frames and prompt."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, ImageOps

from phantom_mega.files import whole_file
from phantom_mega.images import open_reference
from phantom_mega.pictures import COLOURS, card, phrase_colours, reference_tile

# Visually lossless, so that metrics measure the model and not the codec.
CRF = "12"
_OPTIONS = {"movflags": "+faststart"}  # playable before all of it has arrived
_BT709 = 1  # as H.273 numbers primaries, transfer and matrix


def write_mp4(frames: np.ndarray, path: Path, fps: float) -> None:
    """Write frames as H.264 in an MP4 that any player opens; whole or not at all.

    Args:
        frames: uint8 [F, height, width, 3], sides even.
        path: of the file; its folder exists.
        fps: frames per second.

    Raises:
        UserError: the disk is full or the folder cannot be written to.
    """
    with whole_file(path) as temporary, av.open(temporary, "w", format="mp4", options=_OPTIONS) as output:
        stream = output.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": CRF, "preset": "medium"}
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = ColorRange.MPEG
        for array in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def animation(frames: np.ndarray, fps: float, side: int = 256, most: int = 48) -> bytes:
    """A small animated GIF, for TensorBoard and pages that show no video.

    Args:
        frames: uint8 [F, height, width, 3].
        fps: frames per second.
        side: pixels of the longer side, at most.
        most: frames; more are thinned out evenly, at the same pace.
    """
    step = -(-len(frames) // most)
    small = [ImageOps.contain(Image.fromarray(frame), (side, side)) for frame in frames[::step]]
    buffer = io.BytesIO()
    small[0].save(
        buffer, format="GIF", save_all=True, append_images=small[1:], duration=round(1000 * step / fps), loop=0
    )
    return buffer.getvalue()


def video_card(
    title: str,
    about: str,
    prompt: str,
    references: Sequence[Path | str | np.ndarray],
    frames: np.ndarray,
    labels: Sequence[str] = (),
    count: int = 4,
) -> Image.Image:
    """References beside evenly spaced frames, the prompt under them.

    Args:
        title: of the case.
        about: how it was made.
        prompt: the words under the frames; a label that they hold gets its reference's colour.
        references: the images, or their paths.
        frames: uint8 [F, height, width, 3].
        labels: what each reference shows, or none.
        count: frames to show.
    """
    labels = [*labels, *[""] * (len(references) - len(labels))]
    tiles = [
        reference_tile(Image.fromarray(open_reference(path, i + 1)), COLOURS[i % len(COLOURS)], labels[i])
        for i, path in enumerate(references)
    ]
    picked = np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)
    return card(title, about, tiles, [Image.fromarray(frames[i]) for i in picked], phrase_colours(prompt, labels))
