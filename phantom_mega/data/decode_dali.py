"""Decoding by NVIDIA DALI: bytes go in by `external_source`, decoded, resized, cropped, normalized tensors come out.

One pipeline for clips and one for images, built once; every size is an argument input, so samples of all shapes share
a batch. On a GPU clips are decoded by NVDEC ("mixed" backend) and stay there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import nvidia.dali.fn as fn
import nvidia.dali.types as types
import torch
from nvidia.dali import pipeline_def

from phantom_mega.config import DataConfig
from phantom_mega.data.decode import (
    DecodedTriplet,
    PyAVDecoder,
    check_clip,
    failed,
    open_image,
    pad_white,
    to_unit,
)
from phantom_mega.data.plan import PlannedSample
from phantom_mega.data.schema import IMAGE_EXTENSIONS
from phantom_mega.data.shards import RawTriplet
from phantom_mega.errors import BadSampleError
from phantom_mega.geometry import contain_size, cover_size

MAX_BATCH = 16


def _number(name: str, count: int = 0):
    """A per-sample int32 argument: a scalar, or a vector of `count`."""
    return fn.external_source(name=name, dtype=types.INT32, ndim=1 if count else 0)


@pipeline_def
def _clip_pipeline(backend: str):
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
    frames = fn.decoders.video(
        encoded,
        device=backend,
        start_frame=_number("start"),
        sequence_length=_number("length"),
        stride=_number("stride"),
    )
    scaled = fn.resize(frames, size=fn.cast(_number("scaled", 2), dtype=types.FLOAT), antialias=True)
    return fn.crop_mirror_normalize(
        scaled,
        crop_h=fn.cast(_number("height"), dtype=types.FLOAT),
        crop_w=fn.cast(_number("width"), dtype=types.FLOAT),
        mean=[127.5] * 3,
        std=[127.5] * 3,
        dtype=types.FLOAT,
        output_layout="CFHW",
    )


@pipeline_def
def _image_pipeline(backend: str):
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
    image = fn.decoders.image(encoded, device=backend, output_type=types.RGB)
    scaled = fn.resize(image, size=fn.cast(_number("scaled", 2), dtype=types.FLOAT), antialias=True)
    padded = fn.crop(
        scaled,
        crop_h=fn.cast(_number("height"), dtype=types.FLOAT),
        crop_w=fn.cast(_number("width"), dtype=types.FLOAT),
        out_of_bounds_policy="pad",
        fill_values=[255.0],
    )
    normalized = fn.crop_mirror_normalize(
        padded, mean=[127.5] * 3, std=[127.5] * 3, dtype=types.FLOAT, output_layout="CHW"
    )
    return normalized, image


class _Runner:
    """A built pipeline that is fed lists of samples of any number."""

    def __init__(self, definition, data: DataConfig, device: torch.device):
        device_id = (device.index or 0) if device.type == "cuda" else None
        self.pipeline = definition(
            backend="mixed" if device.type == "cuda" else "cpu",
            batch_size=MAX_BATCH,
            num_threads=data.decode_threads,
            device_id=device_id,
            prefetch_queue_depth=1,
        )
        self.pipeline.build()

    def run(self, inputs: dict[str, list[np.ndarray]]) -> list[list[torch.Tensor]]:
        """Outputs of every sample: a list of tensors for each output of the pipeline."""
        count, results = len(inputs["encoded"]), []
        for start in range(0, count, MAX_BATCH):
            for name, values in inputs.items():
                self.pipeline.feed_input(name, values[start : start + MAX_BATCH])
            outputs = [[_to_torch(tensor) for tensor in batch] for batch in self.pipeline.run()]
            results.append(outputs)
        return [[tensor for part in results for tensor in part[i]] for i in range(len(results[0]))]


def _to_torch(tensor) -> torch.Tensor:
    if hasattr(tensor, "__dlpack__") and type(tensor).__name__.endswith("GPU"):
        return torch.from_dlpack(tensor).clone()  # DALI writes the next batch into the same memory
    return torch.from_numpy(np.array(tensor))


class DaliDecoder:
    """Decodes batches by DALI; a sample on which it fails is tried alone, then named, and the others are kept.

    Args:
        data: threads.
        device: `cuda` decodes there.
    """

    def __init__(self, data: DataConfig, device: torch.device):
        self.data, self.device = data, device
        self._clips: _Runner | None = None
        self._images: _Runner | None = None

    def decode(self, items: Sequence[tuple[PlannedSample, RawTriplet]]) -> list[DecodedTriplet]:
        """Decode samples; one that cannot be read gets `error` and zeros."""
        done: dict[int, DecodedTriplet] = {}
        for i, (sample, raw) in enumerate(items):
            try:
                if raw.clip_ext not in IMAGE_EXTENSIONS:
                    check_clip(sample, raw)
            except ValueError as error:
                done[i] = failed(sample, str(BadSampleError(sample.key, raw.shard, str(error))))
        left = [i for i in range(len(items)) if i not in done]
        for i, decoded in zip(left, self._decode_readable([items[i] for i in left]), strict=True):
            done[i] = decoded
        return [done[i] for i in range(len(items))]

    def _decode_readable(self, items: list[tuple[PlannedSample, RawTriplet]]) -> list[DecodedTriplet]:
        if not items:
            return []
        try:
            return self._run(items)
        except (RuntimeError, ValueError) as error:
            # The pipeline that failed cannot be used again, and does not say which sample it was.
            self._clips = self._images = None
            if len(items) > 1:
                return [decoded for item in items for decoded in self._decode_readable([item])]
            sample, raw = items[0]
            # PyAV's message is the clearer one; what it can read although DALI cannot is kept.
            decoded = PyAVDecoder().decode_one(sample, raw)
            if decoded.error is None:
                print(
                    f"{raw.shard}, sample {sample.key}: DALI failed, decoded by PyAV ({_first_line(error)})", flush=True
                )
            return [decoded]

    def _run(self, items: list[tuple[PlannedSample, RawTriplet]]) -> list[DecodedTriplet]:
        videos = self._run_clips([item for item in items if item[1].clip_ext not in IMAGE_EXTENSIONS])
        stills = iter([PyAVDecoder()._video(*item) for item in items if item[1].clip_ext in IMAGE_EXTENSIONS])
        clips = iter(videos)
        references = self._run_references(items)
        decoded = []
        for (sample, raw), (padded, crops) in zip(items, references, strict=True):
            video = next(stills) if raw.clip_ext in IMAGE_EXTENSIONS else next(clips)
            decoded.append(DecodedTriplet(sample, video, padded, crops, raw.triplet.caption))
        return decoded

    def _run_clips(self, items: list[tuple[PlannedSample, RawTriplet]]) -> list[torch.Tensor]:
        if not items:
            return []
        self._clips = self._clips or _Runner(_clip_pipeline, self.data, self.device)
        inputs: dict[str, list] = {
            name: [] for name in ("encoded", "start", "length", "stride", "scaled", "height", "width")
        }
        for sample, raw in items:
            indices = sample.frame_indices
            scaled = cover_size((raw.triplet.height, raw.triplet.width), (sample.height, sample.width))
            stride = indices[1] - indices[0] if len(indices) > 1 else 1
            values = (indices[0], len(indices), stride, scaled, sample.height, sample.width)
            inputs["encoded"].append(np.frombuffer(raw.clip, dtype=np.uint8))
            for name, value in zip(list(inputs)[1:], values, strict=True):
                inputs[name].append(np.array(value, dtype=np.int32))
        return self._clips.run(inputs)[0]

    def _run_references(
        self, items: list[tuple[PlannedSample, RawTriplet]]
    ) -> list[tuple[torch.Tensor, list[np.ndarray]]]:
        """(padded [n, 3, height, width], crops) of every sample."""
        inputs: dict[str, list] = {name: [] for name in ("encoded", "scaled", "height", "width")}
        slots: list[list[tuple[torch.Tensor, np.ndarray] | None]] = []
        for sample, raw in items:
            slots.append([])
            for number in sample.references:
                if not _plain_rgb(raw, number):
                    slots[-1].append(_by_pil(sample, raw, number))
                    continue
                described = raw.triplet.references[number]
                scaled = contain_size((described.height, described.width), (sample.height, sample.width))
                inputs["encoded"].append(np.frombuffer(raw.references[number], dtype=np.uint8))
                for name, value in (("scaled", scaled), ("height", sample.height), ("width", sample.width)):
                    inputs[name].append(np.array(value, dtype=np.int32))
                slots[-1].append(None)
        outputs = iter(())
        if inputs["encoded"]:
            self._images = self._images or _Runner(_image_pipeline, self.data, self.device)
            normalized, images = self._images.run(inputs)
            outputs = iter(zip(normalized, (image.cpu().numpy() for image in images), strict=True))
        results = []
        for (sample, _), own in zip(items, slots, strict=True):
            pairs = [pair or next(outputs) for pair in own]
            padded = [pair[0].to(self.device) for pair in pairs]
            empty = torch.zeros(0, 3, sample.height, sample.width, device=self.device)
            results.append((torch.stack(padded) if padded else empty, [pair[1] for pair in pairs]))
        return results


def _plain_rgb(raw: RawTriplet, number: int) -> bool:
    """Whether DALI gives what `open_image` does: a JPEG without mask (PNG may have alpha or 16 bits)."""
    return raw.masks[number] is None and raw.references[number][:2] == b"\xff\xd8"


def _by_pil(sample: PlannedSample, raw: RawTriplet, number: int) -> tuple[torch.Tensor, np.ndarray]:
    crop = open_image(raw.references[number], raw.masks[number])
    image = torch.from_numpy(crop.copy()).permute(2, 0, 1).float()
    return to_unit(pad_white(image, sample.height, sample.width)), crop


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
