"""Videos from anywhere: opened with care, frames upright and by their timestamps, whatever the frame rate does."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from phantom_mega.images import MAX_PIXELS

# By content FFmpeg would also take playlists that name other files and addresses.
_CONTAINERS = "matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,avi,mpegts,mpeg,flv,asf"
EXTENSIONS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".ts", ".mpg", ".mpeg", ".flv", ".wmv", ".3gp")


class VideoError(ValueError):
    """A video, or a part of it, cannot be read; the message says why."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video is.

    Attributes:
        width, height: in pixels, as shown (after rotation).
        rotation: degrees counter-clockwise by which a player turns the frames.
        fps: frames per second, on average.
        frames: number of frames, as the container says or as its packets are counted.
        duration: in seconds.
        codec: FFmpeg's name.
    """

    width: int
    height: int
    rotation: int
    fps: float
    frames: int
    duration: float
    codec: str


def open_video(path: str | Path) -> av.container.InputContainer:
    """A video file; nothing but this file is opened.

    Raises:
        VideoError: it is no video, has no video stream, or frames of more than `MAX_PIXELS`.
    """
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file", "max_pixels": str(MAX_PIXELS)}
    try:
        # "file:": names such as `http:x` or `concat:a|b` are names of files here.
        container = av.open(f"file:{path}", options=options)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"cannot be opened ({getattr(error, 'strerror', None) or error})") from None
    try:
        if not container.streams.video:
            raise VideoError("has no video stream")
        stream = container.streams.video[0]
        size = (stream.codec_context.width, stream.codec_context.height)
        if size[0] * size[1] > MAX_PIXELS:
            raise VideoError(f"has frames of {size[0]}x{size[1]} pixels; {MAX_PIXELS} pixels are the most")
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        stream.thread_type = "AUTO"
    except VideoError:
        container.close()
        raise
    return container


def probe(path: str | Path) -> VideoInfo:
    """Read a video's container, its packets' times, and its first frame.

    Raises:
        VideoError: it cannot be read, or holds no frame.
    """
    with open_video(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # frame threads would delay the first frame
        first, times, packets = None, [math.inf, -math.inf], 0
        try:
            for packet in container.demux(stream):
                if packet.size:
                    packets += 1
                    if packet.pts is not None:
                        times = [min(times[0], packet.pts), max(times[1], packet.pts)]
                if first is None:
                    first = next(iter(packet.decode()), None)
        except (av.error.FFmpegError, OSError) as error:
            if first is None:
                raise VideoError(f"cannot be decoded ({error.strerror})") from None
        if first is None:
            raise VideoError("holds no frame that can be decoded")
        span = float((times[1] - times[0]) * stream.time_base) if packets > 1 and times[1] > times[0] else 0.0
        fps = (packets - 1) / span if span else float(stream.average_rate or 0)
        width, height = _upright_size(first)
        duration = packets / fps if fps else 0.0
        return VideoInfo(width, height, first.rotation, fps, packets, duration, stream.codec_context.codec.name)


def _upright_size(frame: av.VideoFrame) -> tuple[int, int]:
    return (frame.height, frame.width) if frame.rotation % 180 else (frame.width, frame.height)


def read_frames(path: str | Path, start: float = 0.0, end: float = math.inf) -> Iterator[tuple[float, av.VideoFrame]]:
    """(seconds from the video's start, frame) of all frames with `start` <= seconds < `end`, in order.

    Damaged places are passed over, as players do.

    Raises:
        VideoError: the video cannot be opened, or not one of its frames can be decoded.
    """
    with open_video(path) as container:
        stream = container.streams.video[0]
        origin = float((stream.start_time or 0) * stream.time_base)
        step = 1 / float(stream.average_rate or 25)
        if start > 0:
            container.seek(int((start + origin) / stream.time_base), stream=stream, backward=True)
        time, seen, damaged = (0.0 if start <= 0 else None), False, None
        packets = container.demux(stream)
        while True:
            try:
                decoded = next(packets).decode()
            except (StopIteration, av.error.EOFError):
                break
            except av.error.FFmpegError as error:
                damaged = error
                if not isinstance(error, av.error.InvalidDataError):
                    break
                continue
            for frame in decoded:
                if frame.pts is not None:
                    time = float(frame.pts * frame.time_base) - origin
                elif time is None:
                    continue  # after a seek, nothing says where this is
                seen = True
                if time >= end:
                    return
                if time >= start - 1e-6:
                    yield max(time, 0.0), frame
                time += step
        if not seen and damaged is not None:
            raise VideoError(f"cannot be decoded ({damaged.strerror})")


def frames_at(path: str | Path, times: Sequence[float]) -> list[av.VideoFrame]:
    """The frames that are shown at some seconds, each the last one at or before it.

    Args:
        path: of the video.
        times: seconds from its start, ascending.

    Raises:
        VideoError: the video cannot be read there.
    """
    found: list[av.VideoFrame] = []
    # A key frame may lie well before; `read_frames` starts with the first frame after its start.
    before, wanted = None, list(times)
    for time, frame in read_frames(path, max(0.0, wanted[0] - 1.0), wanted[-1] + 1.0):
        while len(found) < len(wanted) and time > wanted[len(found)] + 1e-6:
            found.append(before or frame)
        if len(found) == len(wanted):
            break
        before = frame
    if before is None:
        raise VideoError(f"shows no frame at {wanted[0]:.2f} s")
    return found + [before] * (len(wanted) - len(found))


def to_rgb(frame: av.VideoFrame, width: int | None = None, height: int | None = None) -> np.ndarray:
    """A frame as it is shown: uint8 [height, width, 3], rotated upright and scaled.

    Args:
        frame: decoded.
        width, height: in pixels, as shown; the frame's own by default.
    """
    shown = _upright_size(frame)
    width, height = width or shown[0], height or shown[1]
    stored = (height, width) if frame.rotation % 180 else (width, height)
    image = frame.to_ndarray(format="rgb24", width=stored[0], height=stored[1], interpolation="AREA")
    return np.ascontiguousarray(np.rot90(image, frame.rotation // 90 % 4))
