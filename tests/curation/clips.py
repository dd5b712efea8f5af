"""Videos for the tests: real clips of a public wheel, and odd ones made on the spot."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from phantom_mega.data.samples import source_video


def real(folder: Path, name: str) -> Path:
    """`bigbuckbunny`, `bikes` or `carphone` as a file."""
    path = folder / f"{name}.mp4"
    path.write_bytes(source_video(name))
    return path


def write_video(
    path: Path, frames: list[np.ndarray], fps: int = 25, times: list[float] | None = None, rotation: int = 0
) -> Path:
    """Frames as H.264.

    Args:
        path: of the file; `.mp4`.
        frames: uint8 [H, W, 3] each.
        fps: frames per second.
        times: seconds at which the frames are shown, for a variable rate.
        rotation: degrees by which players turn the frames.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        stream.options = {"crf": "10", "g": "12", "bf": "0"}
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for i, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(1000 * (times[i] if times else i / fps)), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_empty(path: Path) -> Path:
    """A container with a video stream and not one frame."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        container.start_encoding()
    return path


def noise(seed: int, count: int, height: int = 90, width: int = 160) -> list[np.ndarray]:
    """A still picture of coloured blocks, another for each seed, that drifts a little."""
    blocks = np.random.default_rng(seed).integers(0, 255, (6, 10, 3), dtype=np.uint8)
    image = blocks.repeat(-(-height // 6), 0).repeat(-(-width // 10), 1)[:height, :width]
    return [np.roll(image, i, 1) for i in range(count)]
