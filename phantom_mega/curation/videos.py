"""Stages `files` and `videos`: what there is to curate, and whether it can be read at all."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from phantom_mega.curation.engine.stage import Rejection, Row, Stage
from phantom_mega.curation.video import EXTENSIONS, VideoError, probe
from phantom_mega.errors import UserError

_ENDS = 1 << 20  # bytes at both ends by which a file is known


@dataclass
class VideoSettings:
    """Which videos are taken (paper, supplement 4)."""

    min_side: int = 256
    """Shorter side in pixels at least."""
    min_video_duration: float = 1.0
    """Seconds at least."""
    max_video_duration: float = 0.0
    """Seconds at most; 0 takes any length (memory does not depend on it)."""


def list_videos(source: Path) -> list[Path]:
    """Videos below a folder, by their ending, or those that a text file lists (a path each line, relative to the file).

    Raises:
        UserError: it is neither, or there is none.
    """
    if source.is_dir():
        found = [Path(root, name) for root, _, names in os.walk(source, followlinks=True) for name in names]
        found = sorted(path for path in found if path.suffix.lower() in EXTENSIONS)
        if not found:
            raise UserError(f"{source} holds no video ({', '.join(EXTENSIONS)})")
        return found
    if source.suffix.lower() in EXTENSIONS:
        return [source]
    try:
        lines = source.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{source} is no folder, no video, and no list of videos ({error})") from None
    found = [source.parent / line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not found:
        raise UserError(f"{source} lists no video; write a path on each line")
    return sorted(set(found))


def video_id(path: Path, root: Path) -> str:
    """Letters, digits, `_` and `-`: the file's name, and a digest of where it lies below the input."""
    where = os.path.relpath(path, root).encode("utf-8", "surrogateescape")
    name = re.sub(r"[^A-Za-z0-9_]+", "-", path.stem).strip("-")[:40]
    return f"{name or 'video'}-{hashlib.sha256(where).hexdigest()[:10]}"


def fingerprint(path: Path) -> str:
    """A digest of a file's size and both of its ends; `missing` or what the system says if it cannot be read."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(f"{size}\n".encode() + file.read(_ENDS))
            file.seek(max(0, size - _ENDS))
            digest.update(file.read(_ENDS))
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return digest.hexdigest()[:32]


def list_files(source: str) -> Iterable[Row]:
    """Rows of the stage `files`.

    Raises:
        UserError: see `list_videos`.
    """
    root = Path(source).absolute()
    for path in list_videos(root):
        text = os.fsencode(path).decode("utf-8", "replace")
        row = {"video_id": video_id(path, root if root.is_dir() else root.parent), "path": text}
        if text != str(path):
            yield row | {"accepted": False, "reason": "name is not UTF-8", "detail": "rename the file"}
        else:
            yield row | {"fingerprint": fingerprint(path)}


def open_probe(settings: VideoSettings):
    """The function of a row of the stage `videos`."""

    def probe_row(row: Row) -> list[Row]:
        known = {"video_id": row["video_id"], "path": row["path"]}
        try:
            info = probe(row["path"])
        except VideoError as error:
            raise Rejection("unreadable", None, str(error)) from None
        known |= vars(info)
        side = min(info.width, info.height)
        if side < settings.min_side:
            raise Rejection("too small", side, **known)
        if info.duration < settings.min_video_duration:
            raise Rejection("too short", info.duration, **known)
        if settings.max_video_duration and info.duration > settings.max_video_duration:
            raise Rejection("too long", info.duration, **known)
        return [known]

    return probe_row


def stages(source: str, settings: VideoSettings) -> list[Stage]:
    """`files` and `videos` of an input."""
    names = (pa.field("video_id", pa.string()), pa.field("path", pa.string()))
    numbers = (
        pa.field("width", pa.int32()), pa.field("height", pa.int32()), pa.field("rotation", pa.int32()),
        pa.field("fps", pa.float64()), pa.field("frames", pa.int64()), pa.field("duration", pa.float64()),
        pa.field("codec", pa.string()),
    )  # fmt: skip
    return [
        Stage("files", (*names, pa.field("fingerprint", pa.string())), {}, source, None, source=list_files),
        Stage("videos", (*names, *numbers), {"files": ("video_id", "path", "fingerprint")}, settings, open_probe),
    ]
