"""Data sets that a program makes by itself: made in a hidden folder, known by a marker, replaced as a whole.

At no moment is there an index beside shards that are not its own; other files in the folder are left alone.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from phantom_mega.data.index import INDEX_NAME
from phantom_mega.errors import UserError

BUILDING = ".building"


def is_complete(folder: Path, marker: str, digest: str) -> bool:
    """Whether the data set is there, made of what `digest` stands for."""
    try:
        return json.loads((folder / marker).read_text())["digest"] == digest and (folder / INDEX_NAME).is_file()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def claim(folder: Path, marker: str, source: str) -> Path:
    """Mark a new or empty folder as ours, so that a repeated run knows it; returns an empty folder to build in.

    Raises:
        UserError: the folder holds something else, or cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / marker).exists():
            if any(folder.iterdir()):
                raise UserError(f"{folder} holds something else; choose another --output or remove it first")
            _mark(folder, marker, source, None)
        shutil.rmtree(folder / BUILDING, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error}") from None
    return folder / BUILDING


def publish(folder: Path, marker: str, source: str, digest: str, beside: tuple[str, ...] = ()) -> None:
    """Move what was built into its folder, in place of what was there.

    Args:
        folder: that `claim` gave a folder to build in.
        marker, source, digest: what `is_complete` looks at.
        beside: names of further files that were built, such as tables of what the shards hold.
    """
    building = folder / BUILDING
    _mark(folder, marker, source, None)
    (folder / INDEX_NAME).unlink(missing_ok=True)
    for shard in folder.glob("shard-*.tar"):
        shard.unlink()
    for shard in building.glob("shard-*.tar"):
        shard.rename(folder / shard.name)
    for name in beside:
        (building / name).replace(folder / name)
    (building / INDEX_NAME).rename(folder / INDEX_NAME)
    building.rmdir()
    _mark(folder, marker, source, digest)


def _mark(folder: Path, marker: str, source: str, digest: str | None) -> None:
    (folder / marker).write_text(json.dumps({"digest": digest, "source": source}) + "\n")
