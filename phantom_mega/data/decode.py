"""From stored bytes to training tensors: one interface, PyAV here, DALI in `decode_dali.py`; chosen by codec.

A clip is scaled to cover its training size and cropped at the centre; a reference is scaled into it and padded with
white. Whatever cannot be read becomes zeros with a message, so that no other sample moves.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import av
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from phantom_mega.config import DataConfig
from phantom_mega.data.plan import PlannedSample
from phantom_mega.data.schema import IMAGE_EXTENSIONS
from phantom_mega.data.shards import RawTriplet
from phantom_mega.errors import BadSampleError, UserError
from phantom_mega.geometry import contain_size, cover_size

# What DALI decodes: everything on NVDEC, patent-free codecs on the CPU.
DALI_CPU_CODECS = ("vp8", "vp9", "mjpeg")
DALI_GPU_CODECS = (*DALI_CPU_CODECS, "h264", "hevc", "av1", "mpeg4")
# Timestamps of a constant frame rate may be rounded (webm: to milliseconds) but not by half a frame.
MAX_JITTER = 0.5


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


def failed(sample: PlannedSample, error: str) -> DecodedTriplet:
    """The stand-in of a sample that cannot be read."""
    size = (sample.height, sample.width)
    zeros = torch.zeros(3, sample.num_frames, *size)
    return DecodedTriplet(sample, zeros, torch.zeros(len(sample.references), 3, *size), [], "", error)


def open_image(data: bytes, mask: bytes | None = None) -> np.ndarray:
    """Image bytes to uint8 [h, w, 3]: turned by EXIF, transparency and what lies outside the mask become white.

    Raises:
        ValueError: the bytes are no image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
            if image.mode.startswith("I"):  # 16 bits: PIL would clip instead of scale
                image = Image.fromarray((np.asarray(image, dtype=np.float32) / 257).astype(np.uint8))
            rgba = image.convert("RGBA") if "A" in image.getbands() or "transparency" in image.info else None
            if rgba is not None:
                image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
            image = image.convert("RGB")
            if mask is not None:
                inside = Image.open(io.BytesIO(mask)).convert("L").resize(image.size)
                image = Image.composite(image, Image.new("RGB", image.size, "white"), inside)
        except (OSError, SyntaxError, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise ValueError(f"the image cannot be read ({error})") from None
    return np.asarray(image)


def to_unit(frames: torch.Tensor) -> torch.Tensor:
    """[0, 255] to [-1, 1]."""
    return frames.clamp(0, 255) / 127.5 - 1


def _resize(frames: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if tuple(frames.shape[-2:]) == size:
        return frames
    return F.interpolate(frames, size, mode="bilinear", antialias=True, align_corners=False)


def cover_crop(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Frames float [F, 3, h, w] scaled to cover height x width and cropped at the centre."""
    frames = _resize(frames, cover_size(tuple(frames.shape[-2:]), (height, width)))
    top, left = (frames.shape[-2] - height) // 2, (frames.shape[-1] - width) // 2
    return frames[..., top : top + height, left : left + width]


def pad_white(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Image float [3, h, w] in [0, 255] scaled into height x width and centred on white (paper 3.2)."""
    inside = _resize(image[None], contain_size(tuple(image.shape[-2:]), (height, width)))[0]
    top, left = (height - inside.shape[-2]) // 2, (width - inside.shape[-1]) // 2
    out = image.new_full((3, height, width), 255.0)
    out[:, top : top + inside.shape[-2], left : left + inside.shape[-1]] = inside
    return out


def check_clip(sample: PlannedSample, raw: RawTriplet) -> None:
    """Read a clip's container, not its frames, and refuse what would train wrongly.

    Raises:
        ValueError: empty, no video stream, fewer frames than planned, or a variable frame rate.
    """
    if not raw.clip:
        raise ValueError("the clip has zero bytes")
    try:
        with av.open(io.BytesIO(raw.clip)) as container:
            if not container.streams.video:
                raise ValueError("the clip has no video stream")
            stream = container.streams.video[0]
            times = sorted(packet.pts for packet in container.demux(stream) if packet.size and packet.pts is not None)
    except (av.error.FFmpegError, OSError) as error:
        raise ValueError(f"the clip cannot be opened ({error})") from None
    needed = sample.frame_indices[-1] + 1
    if len(times) < needed:
        raise ValueError(f"the clip holds {len(times)} frames, the plan needs {needed}; is it truncated?")
    steps = np.diff(times)
    if len(steps) and np.abs(steps - np.median(steps)).max() > MAX_JITTER * np.median(steps):
        raise ValueError(
            f"the frame rate varies (frames last {steps.min()} to {steps.max()} ticks of {stream.time_base} s); "
            "transcode it to a constant rate"
        )


def read_frames(clip: bytes, indices: Sequence[int]) -> torch.Tensor:
    """Frames of an encoded clip by number in presentation order, uint8 [F, h, w, 3], RGB; by PyAV.

    Raises:
        ValueError: the clip cannot be decoded up to the last frame.
    """
    wanted, found = set(indices), {}
    try:
        with av.open(io.BytesIO(clip)) as container:
            container.streams.video[0].thread_type = "AUTO"
            for number, frame in enumerate(container.decode(video=0)):
                if number in wanted:
                    found[number] = frame.to_ndarray(format="rgb24")
                if number >= indices[-1]:
                    break
    except (av.error.FFmpegError, IndexError, OSError) as error:
        raise ValueError(f"the clip cannot be decoded ({error})") from None
    if len(found) < len(wanted):
        raise ValueError(f"the clip ends after frame {max(found, default=-1)}, the plan needs frame {indices[-1]}")
    return torch.from_numpy(np.stack([found[number] for number in indices]))


class PyAVDecoder:
    """Decodes anything that FFmpeg reads, on the CPU, one sample after another."""

    def decode(self, items: Sequence[tuple[PlannedSample, RawTriplet]]) -> list[DecodedTriplet]:
        """Decode samples; one that cannot be read gets `error` and zeros."""
        return [self.decode_one(sample, raw) for sample, raw in items]

    def decode_one(self, sample: PlannedSample, raw: RawTriplet) -> DecodedTriplet:
        """Decode one sample."""
        try:
            crops = read_references(sample, raw)
            video = self._video(sample, raw)
        except ValueError as error:
            return failed(sample, str(BadSampleError(sample.key, raw.shard, str(error))))
        size = (sample.height, sample.width)
        images = [to_unit(pad_white(_float_image(crop), *size)) for crop in crops]
        references = torch.stack(images) if images else torch.zeros(0, 3, *size)
        return DecodedTriplet(sample, video, references, crops, raw.triplet.caption)

    def _video(self, sample: PlannedSample, raw: RawTriplet) -> torch.Tensor:
        if raw.clip_ext in IMAGE_EXTENSIONS:
            frames = _float_image(open_image(raw.clip))[None]
        else:
            check_clip(sample, raw)
            frames = read_frames(raw.clip, sample.frame_indices).permute(0, 3, 1, 2).float()
        return to_unit(cover_crop(frames, sample.height, sample.width)).transpose(0, 1).contiguous()


def read_references(sample: PlannedSample, raw: RawTriplet) -> list[np.ndarray]:
    """The planned references, in order, as uint8 [h, w, 3].

    Raises:
        ValueError: one of them cannot be read.
    """
    crops = []
    for number in sample.references:
        try:
            crops.append(open_image(raw.references[number], raw.masks[number]))
        except ValueError as error:
            raise ValueError(f"reference {number}: {error}") from None
    return crops


def _float_image(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1).float()


class AutoDecoder:
    """DALI where it can decode the codec on this device, else PyAV.

    Args:
        data: threads of the decoder.
        device: `cuda` decodes on NVDEC.
    """

    def __init__(self, data: DataConfig, device: torch.device):
        from phantom_mega.data.decode_dali import DaliDecoder

        self.dali, self.pyav = DaliDecoder(data, device), PyAVDecoder()
        self.codecs = DALI_GPU_CODECS if device.type == "cuda" else DALI_CPU_CODECS

    def decode(self, items: Sequence[tuple[PlannedSample, RawTriplet]]) -> list[DecodedTriplet]:
        """Decode samples, each by the decoder for its codec; order is kept."""
        by_dali = [i for i, (_, raw) in enumerate(items) if self.wants_dali(raw)]
        done = dict(zip(by_dali, self.dali.decode([items[i] for i in by_dali]), strict=True))
        return [done[i] if i in done else self.pyav.decode_one(*item) for i, item in enumerate(items)]

    def wants_dali(self, raw: RawTriplet) -> bool:
        """Whether DALI decodes this sample's clip."""
        return raw.clip_ext in IMAGE_EXTENSIONS or raw.triplet.codec in self.codecs


def make_decoder(data: DataConfig, device: torch.device | str = "cpu"):
    """The decoder that `data.decoder` names: `auto`, `dali` or `pyav`; has `.decode(items)`.

    Raises:
        UserError: an unknown name.
    """
    if data.decoder == "pyav":
        return PyAVDecoder()
    if data.decoder in ("auto", "dali"):
        return AutoDecoder(data, torch.device(device))
    raise UserError(f"data.decoder={data.decoder!r} is unknown; use auto, dali or pyav")
