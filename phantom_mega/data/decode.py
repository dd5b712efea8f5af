"""From stored bytes to training tensors: one interface, PyAV here, DALI in `decode_dali.py`.

A clip is scaled to cover its training size and cropped at the centre; a reference is scaled into it and padded with
white. Whatever cannot be read becomes zeros with a message, so that no other sample moves.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation, VideoReformatter

from phantom_mega.config import DataConfig
from phantom_mega.data.plan import PlannedSample
from phantom_mega.data.prefetch import side_stream
from phantom_mega.data.schema import IMAGE_EXTENSIONS
from phantom_mega.data.shards import RawTriplet
from phantom_mega.data.watch import InFlight
from phantom_mega.errors import BadSampleError, UserError
from phantom_mega.images import MAX_PIXELS, cover_crop, image_tensor, open_image, pad_white, to_unit

# Timestamps of a constant frame rate may be rounded (webm: to milliseconds) but not by half a frame.
MAX_JITTER = 0.5
# By content FFmpeg would also take playlists that name files and addresses.
_CONTAINERS = "matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,avi"
# The colour conversion of DALI's CPU decoder, bit for bit. FFmpeg's default repeats chroma instead of interpolating it.
_TO_RGB = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND


@dataclass
class DecodedTriplet:
    """One sample as tensors.

    Attributes:
        sample: as planned.
        video: float32 [3, F, height, width] in [-1, 1].
        references: float32 [n, 3, height, width] in [-1, 1], padded with white to the video's aspect.
        crops: the n reference images as stored, uint8 [h, w, 3], for the vision tower.
        caption: the prompt.
        error: why it could not be read, or None; the tensors are then zeros.
    """

    sample: PlannedSample
    video: torch.Tensor
    references: torch.Tensor
    crops: list[np.ndarray]
    caption: str
    error: str | None = None


def failed(sample: PlannedSample, error: str, device: torch.device | str = "cpu") -> DecodedTriplet:
    """The stand-in of a sample that cannot be read."""
    size = (sample.height, sample.width)
    video = torch.zeros(3, sample.num_frames, *size, device=device)
    references = torch.zeros(len(sample.references), 3, *size, device=device)
    return DecodedTriplet(sample, video, references, [], "", error)


def is_image(raw: RawTriplet) -> bool:
    """Whether the sample's clip is a still image (T = 1)."""
    return raw.clip_ext in IMAGE_EXTENSIONS


def open_clip(clip: bytes) -> av.container.InputContainer:
    """A clip's container, by PyAV: Matroska, MP4 or AVI; nothing but these bytes is opened.

    Raises:
        av.error.FFmpegError: it is none of these.
        ValueError: its frames have more than `MAX_PIXELS`.
    """
    limits = {"max_pixels": str(MAX_PIXELS)}
    container = av.open(io.BytesIO(clip), options={"format_whitelist": _CONTAINERS, "protocol_whitelist": ""} | limits)
    for stream in container.streams.video:
        if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
            size = f"{stream.codec_context.width}x{stream.codec_context.height}"
            container.close()
            raise ValueError(f"the clip has frames of {size} pixels; {MAX_PIXELS} pixels are the most")
        stream.codec_context.options = limits  # a frame may be larger than its container says
    return container


@dataclass(frozen=True)
class ClipInfo:
    """What a clip is, by its container and its first frame.

    Attributes:
        codec: FFmpeg's name (`vp9`, `h264`...).
        height, width: as shown, in pixels.
        pixel_format: FFmpeg's name (`yuv420p`...).
        colorspace: the matrix that turns YUV into RGB, as H.273 numbers them (1: BT.709, 2: not said, 5 and 6: BT.601).
        rotation: degrees counter-clockwise by which a player turns the frames.
        plain: every packet is shown, so that frames can be counted by packets.
    """

    codec: str
    height: int
    width: int
    pixel_format: str
    colorspace: int
    rotation: int
    plain: bool


def probe_clip(raw: RawTriplet) -> ClipInfo:
    """Read a clip's container and first frame, and refuse what would train wrongly.

    A variable frame rate is refused, not resampled: repeated and dropped frames would teach a false motion.

    Raises:
        ValueError: empty, not readable, no video stream, fewer frames or another size than the sample's description
            says, or a variable frame rate.
    """
    if not raw.clip:
        raise ValueError("the clip has zero bytes")
    try:
        with open_clip(raw.clip) as container:
            if not container.streams.video:
                raise ValueError("the clip has no video stream")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # frame threads would delay the first frame
            time_base, frame, shown, discarded = stream.time_base, None, [], 0
            for packet in container.demux(stream):
                if packet.size and not packet.is_discard:
                    shown.append(packet.pts)
                discarded += packet.is_discard
                if frame is None:
                    frame = next(iter(packet.decode()), None)
            codec = stream.codec_context.codec.name
    except av.error.FFmpegError as error:
        raise ValueError(f"the clip cannot be opened ({error.strerror})") from None
    # VP8 stores frames that are never shown under the time of their neighbour.
    times = np.unique([time for time in shown if time is not None])
    count = len(times) if None not in shown else len(shown)
    described = raw.triplet
    if count < described.frames or frame is None:
        raise ValueError(f"the clip holds {count} frames, the index says {described.frames}; is it truncated?")
    steps = np.diff(times)
    if len(steps) and np.abs(steps - np.median(steps)).max() > MAX_JITTER * np.median(steps):
        raise ValueError(
            f"the frame rate varies (frames last {steps.min()} to {steps.max()} ticks of {time_base} s); "
            "transcode it to a constant rate"
        )
    size = (frame.width, frame.height) if frame.rotation % 180 else (frame.height, frame.width)
    if size != (described.height, described.width):
        raise ValueError(
            f"the clip shows {size[1]}x{size[0]} pixels (width x height), the index says "
            f"{described.width}x{described.height}; correct its JSON and rebuild the index"
        )
    return ClipInfo(codec, *size, frame.format.name, int(frame.colorspace), frame.rotation, not discarded)


def decode_clip(clip: bytes, sample: PlannedSample, threads: int = 1) -> torch.Tensor:
    """The planned frames of an encoded clip by PyAV, scaled and cropped: float32 [3, F, height, width] in [-1, 1].

    Frames are counted in presentation order. Only one frame at a time is held at the clip's own size.

    Raises:
        ValueError: the clip cannot be decoded up to the last planned frame.
    """
    places: dict[int, list[int]] = {}
    for place, number in enumerate(sample.frame_indices):
        places.setdefault(number, []).append(place)
    last, found = max(places), 0
    video = torch.empty(3, sample.num_frames, sample.height, sample.width)
    convert = VideoReformatter()
    try:
        with open_clip(clip) as container:
            stream = container.streams.video[0]
            stream.thread_type, stream.codec_context.thread_count = "AUTO", threads
            number = 0
            # To the end, also when all frames are there: FFmpeg loses some bytes of memory with a file left in between.
            for packet in container.demux(stream):
                for frame in packet.decode() if number <= last else ():
                    if number in places:
                        rgb = convert.reformat(frame, format="rgb24", interpolation=_TO_RGB).to_ndarray()
                        rgb = np.rot90(rgb, frame.rotation // 90)  # where the container says that players turn it
                        image = cover_crop(image_tensor(rgb), sample.height, sample.width)
                        video[:, places[number]] = to_unit(image)[:, None]
                        found += 1
                    number += 1
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"the clip cannot be decoded ({getattr(error, 'strerror', error)})") from None
    if found < len(places):
        raise ValueError(f"decoding gave {found} of {len(places)} planned frames; the clip is damaged")
    return video


def read_references(sample: PlannedSample, raw: RawTriplet) -> list[np.ndarray]:
    """The planned references, in order, as uint8 [h, w, 3].

    Raises:
        ValueError: one of them cannot be read.
    """
    crops = []
    for number in sample.references:
        try:
            crops.append(open_image(raw.references[number], raw.masks[number]))
        except (ValueError, IndexError) as error:
            raise ValueError(f"reference {number}: {error}") from None
    return crops


class PyAVDecoder:
    """Decodes anything that FFmpeg reads, on the CPU.

    Args:
        threads: samples are shared out to so many; a lone sample gets them all.
        device: where the tensors are put.
        tasks: told of every sample that is being decoded.
    """

    def __init__(self, threads: int = 1, device: torch.device | str = "cpu", tasks: InFlight | None = None):
        self.threads, self.device, self.tasks = threads, torch.device(device), tasks or InFlight()
        self._pool: ThreadPoolExecutor | None = None

    def decode(self, items: Sequence[tuple[PlannedSample, RawTriplet]]) -> list[DecodedTriplet]:
        """Decode samples; one that cannot be read gets `error` and zeros."""
        return self._share_out(self.decode_one, items)

    def decode_one(self, sample: PlannedSample, raw: RawTriplet, threads: int = 1) -> DecodedTriplet:
        """Decode one sample."""
        try:
            with self.tasks.at(f"decoding the references of sample {sample.key} of {raw.shard}"):
                crops = read_references(sample, raw)
            video = self.video(sample, raw, threads)
        except ValueError as error:
            return failed(sample, str(BadSampleError(sample.key, raw.shard, str(error))), self.device)
        size = (sample.height, sample.width)
        images = [to_unit(pad_white(image_tensor(crop), *size)) for crop in crops]
        references = torch.stack(images) if images else torch.zeros(0, 3, *size)
        return DecodedTriplet(sample, video, references.to(self.device), crops, raw.triplet.caption)

    def videos(self, items: Sequence[tuple[PlannedSample, RawTriplet]]) -> list[torch.Tensor | ValueError]:
        """`video` of every sample, or its error."""
        return self._share_out(self._video_or_error, items)

    def video(self, sample: PlannedSample, raw: RawTriplet, threads: int = 1) -> torch.Tensor:
        """float32 [3, F, height, width] of a clip or of a still image.

        Raises:
            ValueError: it cannot be read.
        """
        with self.tasks.at(f"decoding sample {sample.key} of {raw.shard}"):
            if is_image(raw):
                image = cover_crop(image_tensor(open_image(raw.clip)), sample.height, sample.width)
                return to_unit(image)[:, None].to(self.device)
            probe_clip(raw)
            return decode_clip(raw.clip, sample, threads).to(self.device)

    def _video_or_error(self, sample: PlannedSample, raw: RawTriplet, threads: int) -> torch.Tensor | ValueError:
        try:
            return self.video(sample, raw, threads)
        except ValueError as error:
            return error

    def _share_out(self, function: Callable, items: Sequence[tuple[PlannedSample, RawTriplet]]) -> list:
        """`function(sample, raw, threads)` of every item, in order."""
        if len(items) < 2 or self.threads < 2:
            return [function(*item, self.threads) for item in items]
        if self._pool is None:
            # Kept: every thread that FFmpeg was called from leaves some bytes behind.
            self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decoder")

        def one(item: tuple[PlannedSample, RawTriplet]):
            with side_stream(self.device):  # else copies would queue up behind the step, and the step behind them
                return function(*item, 1)

        return list(self._pool.map(one, items))


def make_decoder(data: DataConfig, device: torch.device | str = "cpu", tasks: InFlight | None = None):
    """The decoder that `data.decoder` names; has `.decode(list of (PlannedSample, RawTriplet))`.

    `auto`: on a GPU DALI for what it decodes, PyAV for the rest; on a CPU PyAV, which is twice as fast there
    (benchmarks/data_throughput.py). `dali`: a clip that DALI does not decode is a bad sample, for runs that must not
    fall back to the CPU. `pyav`: PyAV alone. `tasks` is told what is being decoded.

    Raises:
        UserError: an unknown name.
    """
    if data.decoder == "pyav" or (data.decoder == "auto" and torch.device(device).type == "cpu"):
        return PyAVDecoder(data.decode_threads, device, tasks)
    if data.decoder in ("auto", "dali"):
        from phantom_mega.data.decode_dali import DaliDecoder

        return DaliDecoder(data, torch.device(device), fallback=data.decoder == "auto", tasks=tasks)
    raise UserError(f"data.decoder={data.decoder!r} is unknown; use auto, dali or pyav")
