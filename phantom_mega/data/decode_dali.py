"""Decoding by NVIDIA DALI: bytes go in by `external_source`, decoded, resized, cropped, normalized tensors come out.

One pipeline for clips and one for images, built once; every size is an argument input, so samples of all shapes share
a batch. On a GPU clips are decoded by NVDEC ("mixed" backend) and stay there.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import nvidia.dali.fn as fn
import nvidia.dali.types as types
import torch
from nvidia.dali import pipeline_def
from PIL import ExifTags

from phantom_mega.config import DataConfig
from phantom_mega.data.decode import ClipInfo, DecodedTriplet, PyAVDecoder, failed, is_image, probe_clip
from phantom_mega.data.plan import PlannedSample
from phantom_mega.data.shards import RawTriplet
from phantom_mega.data.watch import InFlight
from phantom_mega.errors import BadSampleError
from phantom_mega.geometry import contain_size
from phantom_mega.images import (
    bounded_cover_size,
    cover_crop,
    image_tensor,
    open_header,
    open_image,
    pad_white,
    to_unit,
)

logger = logging.getLogger(__name__)
Item = tuple[PlannedSample, RawTriplet]

CPU_CODECS = ("vp8", "vp9", "mjpeg")
GPU_CODECS = (*CPU_CODECS, "h264", "hevc", "av1", "mpeg4")
GPU_FORMATS = ("yuv420p", "yuvj420p")  # NVDEC's output is read as 8-bit 4:2:0
CPU_FORMATS = (*GPU_FORMATS, "yuv422p", "yuvj422p", "yuv444p", "yuvj444p")
MAX_BATCH = 16
MAX_BATCH_BYTES = 1 << 30  # of frames at the clips' own size, which DALI holds all at once

# (Kr, Kb) of the matrices that H.273 numbers. Both DALI decoders take every clip as BT.601.
_BT601 = (0.299, 0.114)
_LUMA = {1: (0.2126, 0.0722), 2: _BT601, 5: _BT601, 6: _BT601, 9: (0.2627, 0.0593)}


def _number(name: str, count: int = 0, dtype=types.INT32):
    """A per-sample argument: a scalar, or a vector of `count`."""
    return fn.cast(fn.external_source(name=name, dtype=types.INT32, ndim=1 if count else 0), dtype=dtype)


def _fit(images, layout: str):
    """Scale to `scaled`, crop or pad with white around the centre to (`height`, `width`), normalize to [-1, 1]."""
    scaled = fn.resize(images, size=_number("scaled", 2, types.FLOAT), antialias=True)
    return fn.crop_mirror_normalize(
        scaled,
        crop_h=_number("height", dtype=types.FLOAT),
        crop_w=_number("width", dtype=types.FLOAT),
        rounding="truncate",  # as integer division does
        out_of_bounds_policy="pad",
        fill_values=[1.0],  # white, after normalization
        mean=[127.5] * 3,
        std=[127.5] * 3,
        dtype=types.FLOAT,
        output_layout=layout,
    )


@pipeline_def
def _clip_pipeline(backend: str):
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
    frames = fn.decoders.video(
        encoded,
        device=backend,
        start_frame=_number("start"),
        sequence_length=_number("length"),
        stride=_number("stride"),
        pad_mode="none",  # missing frames must show, not turn black
    )
    return _fit(frames, "CFHW")


@pipeline_def
def _image_pipeline(backend: str):
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
    image = fn.decoders.image(encoded, device=backend, output_type=types.RGB)
    return _fit(image, "CHW"), image


class _Runner:
    """A pipeline that is fed lists of samples of any number, and survives samples that it cannot decode.

    Args:
        definition: of the pipeline.
        data: threads.
        device: `cuda` decodes there.
    """

    def __init__(self, definition: Callable, data: DataConfig, device: torch.device):
        self.definition, self.threads, self.device = definition, data.decode_threads, device
        self.pipeline = None

    def run(self, inputs: list[dict[str, np.ndarray]], sizes: list[int]) -> list[list[torch.Tensor] | Exception]:
        """Outputs of every sample, or why DALI did not decode it.

        Args:
            inputs: arguments of the pipeline, for each sample.
            sizes: bytes of each decoded sample; a batch is limited by their sum.
        """
        results, start = [], 0
        while start < len(inputs):
            stop, held = start + 1, sizes[start]
            while stop < len(inputs) and stop - start < MAX_BATCH and held + sizes[stop] <= MAX_BATCH_BYTES:
                held, stop = held + sizes[stop], stop + 1
            results += self._run_batch(inputs[start:stop])
            start = stop
        return results

    def _run_batch(self, batch: list[dict[str, np.ndarray]]) -> list[list[torch.Tensor] | Exception]:
        if self.pipeline is None:  # outside of `try`: DALI that does not start is no fault of a sample
            self.pipeline = self._build()
        try:
            for name in batch[0]:
                self.pipeline.feed_input(name, [sample[name] for sample in batch])
            outputs = [[_to_torch(tensor) for tensor in output] for output in self.pipeline.run()]
            if self.device.type == "cuda":  # DALI writes its next batch into the memory that was copied from
                torch.cuda.current_stream(self.device).synchronize()
            return [list(sample) for sample in zip(*outputs, strict=True)]
        except (RuntimeError, ValueError, IndexError) as error:
            # DALI calls a pipeline that failed invalid, and does not say which sample it was.
            self.pipeline = None
            if len(batch) == 1:
                return [error]
            middle = len(batch) // 2
            return self._run_batch(batch[:middle]) + self._run_batch(batch[middle:])

    def _build(self):
        on_gpu = self.device.type == "cuda"
        pipeline = self.definition(
            backend="mixed" if on_gpu else "cpu",
            batch_size=MAX_BATCH,
            num_threads=self.threads,
            device_id=(self.device.index or 0) if on_gpu else None,
            prefetch_queue_depth=1,
        )
        pipeline.build()
        return pipeline


def _to_torch(tensor) -> torch.Tensor:
    if type(tensor).__name__.endswith("GPU"):
        return torch.from_dlpack(tensor).clone()
    return torch.from_numpy(np.array(tensor))


class DaliDecoder:
    """Decodes batches by DALI; what it cannot decode is tried alone by PyAV or PIL, or named, and the rest is kept.

    Args:
        data: threads.
        device: `cuda` decodes there.
        fallback: PyAV decodes clips that DALI does not; else they are bad samples.
        tasks: told of the samples that are being decoded.
    """

    def __init__(self, data: DataConfig, device: torch.device, fallback: bool = True, tasks: InFlight | None = None):
        self.device, self.fallback, self.tasks = device, fallback, tasks or InFlight()
        on_gpu = device.type == "cuda"
        self.codecs, self.formats = (GPU_CODECS, GPU_FORMATS) if on_gpu else (CPU_CODECS, CPU_FORMATS)
        self.pyav = PyAVDecoder(data.decode_threads, device, self.tasks)
        self._clips = _Runner(_clip_pipeline, data, device)
        self._images = _Runner(_image_pipeline, data, device)

    def decode(self, items: Sequence[Item]) -> list[DecodedTriplet]:
        """Decode samples; one that cannot be read gets `error` and zeros."""
        with self.tasks.at("decoding by DALI samples " + ", ".join(f"{s.key} of {raw.shard}" for s, raw in items)):
            return self._decode(items)

    def _decode(self, items: Sequence[Item]) -> list[DecodedTriplet]:
        jobs = [_ImageJob(raw.clip, None, bounded_cover_size, sample) for sample, raw in items if is_image(raw)]
        for sample, raw in items:
            jobs += [
                _ImageJob(raw.references[number], raw.masks[number], contain_size, sample, f"reference {number}: ")
                for number in sample.references
            ]
        images = iter(self._decode_images(jobs))
        stills = {i: next(images) for i, (_, raw) in enumerate(items) if is_image(raw)}
        clips = self._decode_clips([item for item in items if not is_image(item[1])])
        results = []
        for i, (sample, raw) in enumerate(items):
            video = stills[i] if i in stills else next(clips)
            references = [next(images) for _ in sample.references]
            results.append(self._assemble(sample, raw, video, references))
        return results

    def _assemble(self, sample: PlannedSample, raw: RawTriplet, video, references: list) -> DecodedTriplet:
        problem = next((part for part in (*references, video) if isinstance(part, Exception)), None)
        if problem is not None:
            return failed(sample, str(BadSampleError(sample.key, raw.shard, str(problem))), self.device)
        if is_image(raw):
            video = video[0][:, None]
        padded = torch.zeros(0, 3, sample.height, sample.width, device=self.device)
        if references:
            padded = torch.stack([image for image, _ in references])
        return DecodedTriplet(sample, video, padded, [crop for _, crop in references], raw.triplet.caption)

    def refusal(self, sample: PlannedSample, info: ClipInfo) -> str | None:
        """Why DALI does not decode this clip, or None."""
        steps = np.unique(np.diff(sample.frame_indices))
        if info.codec not in self.codecs:
            return f"DALI does not decode {info.codec} on the {'GPU' if self.device.type == 'cuda' else 'CPU'}"
        if info.pixel_format not in self.formats or info.colorspace not in _LUMA:
            return f"DALI does not convert {info.pixel_format} with colour matrix {info.colorspace}"
        if info.rotation or not info.plain:
            return "DALI does not turn or cut frames as the container says"
        if len(steps) > 1 or (steps < 1).any():
            return "DALI takes evenly spaced frames only"
        return None

    def _decode_clips(self, items: list[Item]) -> Iterator[torch.Tensor | Exception]:
        """[3, F, height, width] of every clip, or its error."""
        results: dict[int, torch.Tensor | Exception] = {}
        chosen: dict[int, ClipInfo] = {}
        for i, (sample, raw) in enumerate(items):
            try:
                info = probe_clip(raw)
                bounded_cover_size((info.height, info.width), (sample.height, sample.width))
                refusal = self.refusal(sample, info)
                if refusal is None:
                    chosen[i] = info
                elif not self.fallback:
                    raise ValueError(f"{refusal}; use data.decoder=auto")
            except ValueError as error:
                results[i] = error
        inputs = [_clip_inputs(*items[i], info) for i, info in chosen.items()]
        sizes = [items[i][0].num_frames * info.height * info.width * 3 for i, info in chosen.items()]
        for (i, info), outputs in zip(chosen.items(), self._clips.run(inputs, sizes), strict=True):
            sample, raw = items[i]
            if isinstance(outputs, Exception):
                problem = _reason(outputs)
            elif outputs[0].shape[1] != sample.num_frames:
                problem = f"decoding gave {outputs[0].shape[1]} of {sample.num_frames} planned frames"
            else:
                results[i] = _as_tagged(outputs[0], info.colorspace)
                continue
            if self.fallback:
                logger.warning("%s, sample %s: DALI failed (%s); trying PyAV", raw.shard, sample.key, problem)
            else:
                results[i] = ValueError(f"DALI cannot decode the clip ({problem})")
        left = [i for i in range(len(items)) if i not in results]
        results |= zip(left, self.pyav.videos([items[i] for i in left]), strict=True)
        return iter([results[i] for i in range(len(items))])

    def _decode_images(self, jobs: list[_ImageJob]) -> list[tuple[torch.Tensor, np.ndarray] | Exception]:
        """([3, height, width] normalized, uint8 [h, w, 3] as stored) of every image, or its error."""
        sizes = [job.size_for_dali() for job in jobs]
        chosen = [i for i, size in enumerate(sizes) if size is not None]
        inputs = [jobs[i].inputs(sizes[i]) for i in chosen]
        outputs = dict(zip(chosen, self._images.run(inputs, [3 * math.prod(sizes[i]) for i in chosen]), strict=True))
        results = []
        for i, job in enumerate(jobs):
            if isinstance(outputs.get(i), list):
                results.append((outputs[i][0], outputs[i][1].cpu().numpy()))
                continue
            try:  # not for DALI, or it failed: PIL's message is the clearer one
                tensor, crop = job.by_pil()
                results.append((tensor.to(self.device), crop))
            except ValueError as error:
                results.append(ValueError(f"{job.name}{error}"))
        return results


@dataclass(frozen=True)
class _ImageJob:
    """An image to decode: its bytes, its mask, how it is fitted into which sample, and its name in messages."""

    data: bytes
    mask: bytes | None
    fit: Callable[[tuple[int, int], tuple[int, int]], tuple[int, int]]
    sample: PlannedSample
    name: str = ""

    def size_for_dali(self) -> tuple[int, int] | None:
        """(height, width) as shown, if DALI gives what `open_image` does: no alpha, no mask, 8 bits."""
        try:
            image = open_header(self.data)
            turned = image.getexif().get(ExifTags.Base.Orientation, 1)
            size = (image.width, image.height) if turned >= 5 else (image.height, image.width)
            self.fit(size, (self.sample.height, self.sample.width))
        except Exception:  # too narrow, or damaged, where PIL raises nearly anything; `by_pil` will say what
            return None
        plain = image.format == "JPEG" or (image.format == "PNG" and turned == 1 and not image.has_transparency_data)
        if self.mask is not None or image.mode not in ("RGB", "L") or not plain:
            return None
        return size

    def inputs(self, size: tuple[int, int]) -> dict[str, np.ndarray]:
        """Arguments of the image pipeline."""
        target = (self.sample.height, self.sample.width)
        return {
            "encoded": np.frombuffer(self.data, dtype=np.uint8),
            "scaled": np.array(self.fit(size, target), dtype=np.int32),
            "height": np.array(target[0], dtype=np.int32),
            "width": np.array(target[1], dtype=np.int32),
        }

    def by_pil(self) -> tuple[torch.Tensor, np.ndarray]:
        """As the pipeline does it.

        Raises:
            ValueError: the image cannot be read.
        """
        crop = open_image(self.data, self.mask)
        fit = cover_crop if self.fit is bounded_cover_size else pad_white
        return to_unit(fit(image_tensor(crop), self.sample.height, self.sample.width)), crop


def _clip_inputs(sample: PlannedSample, raw: RawTriplet, info: ClipInfo) -> dict[str, np.ndarray]:
    indices, target = sample.frame_indices, (sample.height, sample.width)
    numbers = {
        "start": indices[0],
        "length": len(indices),
        "stride": indices[1] - indices[0] if len(indices) > 1 else 1,
        "scaled": bounded_cover_size((info.height, info.width), target),
        "height": target[0],
        "width": target[1],
    }
    arrays = {name: np.array(value, dtype=np.int32) for name, value in numbers.items()}
    return {"encoded": np.frombuffer(raw.clip, dtype=np.uint8), **arrays}


def _as_tagged(video: torch.Tensor, colorspace: int) -> torch.Tensor:
    """A clip [3, F, height, width] that was converted as BT.601, with the colours of the matrix that it is tagged with.

    Grey stays grey, so the conversion is the same on [-1, 1] as on [0, 255], and for limited and full range.
    """
    if _LUMA[colorspace] == _BT601:
        return video
    matrix = (_rgb_from_yuv(*_LUMA[colorspace]) @ np.linalg.inv(_rgb_from_yuv(*_BT601))).astype(np.float32)
    matrix = torch.from_numpy(matrix).to(video.device)
    return (matrix @ video.flatten(1)).reshape(video.shape).clamp_(-1, 1)


def _rgb_from_yuv(kr: float, kb: float) -> np.ndarray:
    """R, G, B of Y', Pb, Pr (H.273, matrix coefficients)."""
    kg = 1 - kr - kb
    return np.array([[1, 0, 2 * (1 - kr)], [1, -2 * kb * (1 - kb) / kg, -2 * kr * (1 - kr) / kg], [1, 2 * (1 - kb), 0]])


def _reason(error: Exception) -> str:
    """The line of DALI's long message that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "ssert" in line or "failed" in line]
    return (telling or lines or [type(error).__name__])[0][:200]
