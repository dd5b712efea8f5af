"""One clip out of a video: cut by timestamps, upright, at a constant frame rate, 4k+1 frames, as VP9 or H.264."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.video.frame import PictureType

from phantom_mega.curation.video import VideoError, read_frames, to_rgb
from phantom_mega.data.encode import encode_frames, find_codec, scaled_size
from phantom_mega.errors import UserError
from phantom_mega.geometry import VAE_TIME_STRIDE, latent_frames

# A cut may be off by the rounding of timestamps (a millisecond), and must not catch a frame of the next shot.
_MARGIN = 0.25  # of a frame's time
_MISSING = 0.25  # seconds that a video may end too early


@dataclass
class TranscodeSettings:
    """How clips are stored."""

    codec: str = "vp9"
    """`vp9` (WebM; DALI decodes it without a GPU), `h264` (MP4) or `ffv1` (Matroska, lossless, many times as large)."""
    fps: float = 24.0
    """Frames per second at most; slower videos keep their average. 0 keeps it for all."""
    short_side: int = 720
    """Pixels of the shorter side at most; smaller videos keep their size."""
    min_frames: int = 17
    """Shorter clips are rejected."""
    max_frames: int = 0
    """What is beyond is cut off; 4k+1, or 0 for any number."""
    crf: int = 0
    """Constant quality of the encoder, less is better; 0 takes 15 for VP9 and 17 for H.264."""

    def check(self) -> None:
        """Raise UserError on a value that no clip could be made with."""
        find_codec(self.codec)
        if self.short_side < 16:
            raise UserError(f"short_side={self.short_side} is too small; it must be at least 16")
        if self.fps < 0 or self.min_frames < 1 or not 0 <= self.crf <= 63:
            raise UserError(f"fps={self.fps}, min_frames={self.min_frames}, crf={self.crf}: one is out of range")
        if self.max_frames:
            latent_frames(self.max_frames)


@dataclass(frozen=True)
class EncodedClip:
    """An encoded clip and what it is."""

    data: bytes
    extension: str
    codec: str
    frames: int
    fps: float
    height: int
    width: int


def frame_rate(average: float, most: float) -> Fraction:
    """The rate of a clip: that of its video, but at most `most` (0: any).

    A rate that is within a frame in two thousand of a whole one, or of the 1000/1001 of one, is taken to be that.

    Raises:
        VideoError: the video has no frame rate.
    """
    if not (average > 0 and math.isfinite(average)):
        raise VideoError(f"has a frame rate of {average}")
    rate = min(average, most) if most else average
    for base in (Fraction(1), Fraction(1000, 1001)):
        whole = round(rate / base) * base
        if whole and abs(whole - rate) < rate / 2000:
            return whole
    return Fraction(rate).limit_denominator(1000)


def resample[T](timed: Iterable[tuple[float, T | None]], fps: Fraction) -> Iterator[T]:
    """Items at a constant rate: each tick shows the last one whose time, rounded to ticks, is not after it.

    Args:
        timed: (seconds, item), ascending; of the last pair only the time is used: when the one before it ends.
        fps: ticks per second, counted from the first time.
    """
    first, held, tick = None, None, 0
    for time, item in timed:
        first = time if first is None else first
        due = math.floor((time - first) * float(fps) + 0.5)
        if held is not None:
            for _ in range(tick, due):
                yield held
        tick, held = max(tick, due), item


def whole_groups[T](frames: Iterable[T], most: int = 0) -> Iterator[T]:
    """The first 4k+1 frames, as many as there are but at most `most` (0: any); up to four are held."""
    held = []
    for i, frame in enumerate(frames):
        held.append(frame)
        if i % VAE_TIME_STRIDE == 0:
            yield from held
            held = []
            if i + 1 == most:
                return


def cut_frames(path: str | Path, start: float, end: float, step: float) -> Iterator[tuple[float, av.VideoFrame | None]]:
    """(seconds, frame) of the frames that begin in [start, end), and (seconds, None) when the last of them ends.

    Args:
        path: of the video.
        start, end: seconds from its start.
        step: seconds that a frame lasts on average.

    Raises:
        VideoError: it cannot be read there, or ends before `end`.
    """
    last = None
    for time, frame in read_frames(path, max(0.0, start - _MARGIN * step)):
        if time >= end - _MARGIN * step:
            if last is not None:
                yield end, None
                return
            break
        last = time
        yield time, frame
    if last is None:
        raise VideoError(f"shows no frame between {start:.2f} and {end:.2f} s")
    if last + step < end - max(_MISSING, 2 * step):
        raise VideoError(f"ends at {last + step:.2f} s, before the clip does at {end:.2f} s: truncated or damaged")
    yield last + step, None


def prepared(frame: av.VideoFrame, height: int, width: int) -> av.VideoFrame:
    """A frame upright and of a clip's size, in its own colour matrix."""
    if frame.rotation % 360:
        frame = av.VideoFrame.from_ndarray(to_rgb(frame, width, height), format="rgb24")
    frame = frame.reformat(width, height, "yuv420p", interpolation="AREA")
    frame.pict_type = PictureType.NONE  # else the encoder repeats the key frames of the source
    return frame


def transcode(path: str | Path, start: float, end: float, fps: float, settings: TranscodeSettings) -> EncodedClip:
    """Cut and encode a clip; equal inputs give equal bytes.

    Args:
        path: of the video.
        start, end: seconds from its start; what begins at `end` is left out.
        fps: frames per second of the video, on average.
        settings: of the clip. Its memory does not depend on the clip's length.

    Raises:
        VideoError: the video cannot be read there, or the clip has fewer than `min_frames`.
    """
    rate = frame_rate(fps, settings.fps)
    timed = cut_frames(path, start, end, 1 / fps)
    began, first = next(timed)
    shown = (first.width, first.height) if first.rotation % 180 else (first.height, first.width)
    height, width = scaled_size(*shown, settings.short_side)
    if min(height, width) < 2:
        raise VideoError(f"has frames of {shown[1]}x{shown[0]} pixels, too narrow for a clip")

    def sized() -> Iterator[tuple[float, av.VideoFrame | None]]:
        yield began, prepared(first, height, width)
        for time, frame in timed:
            yield time, frame and prepared(frame, height, width)

    options = {"crf": str(settings.crf)} if settings.crf else {}
    frames = whole_groups(resample(sized(), rate), settings.max_frames)
    data, count = encode_frames(frames, rate, height, width, settings.codec, **options)
    if count < settings.min_frames:
        raise VideoError(f"has {count} frames of 4k+1 between {start:.2f} and {end:.2f} s, fewer than the least")
    return EncodedClip(data, find_codec(settings.codec).extension, settings.codec, count, float(rate), height, width)
