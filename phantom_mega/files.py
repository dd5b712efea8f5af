"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from phantom_mega.errors import UserError

UNFINISHED = ".writing"  # ending of a `whole_file` that is being written


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A hidden path beside `path` to write to; it takes that name when the block ends well, and is removed otherwise.

    Raises:
        UserError: the disk is full, or the folder cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} could not be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def read_json_object(path: Path) -> dict:
    """The object that a JSON file holds.

    Raises:
        UserError: it cannot be read, is not JSON, or holds something else.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} must be an object {{...}}, it is a {type(raw).__name__}")
    return raw


def write_json(content: dict | list, path: Path) -> Path:
    """Write JSON that people can read, whole or not at all; returns the path.

    Raises:
        UserError: it cannot be written.
    """
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    return path


def digest_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to disk: no name then stands for half a file, even after a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot sync folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hidden_folder(target: Path) -> Path:
    """A new hidden folder beside `target` to write to; those that killed writers left there are removed.

    Raises:
        OSError: it cannot be made.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f".{target.name}.writing-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f".{target.name}.writing-", dir=target.parent))


def publish_folder(temporary: Path, target: Path) -> None:
    """Give a `hidden_folder` its name, synced to disk; a folder of that name goes only when the new one is there.

    All may read it who may read new files: `mkdtemp` and safetensors make what only their owner reads.

    Raises:
        OSError: the disk is full, or the folder cannot be renamed.
    """
    mask = os.umask(0)
    os.umask(mask)
    for path in (*temporary.rglob("*"), temporary):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
        sync(path)
    old = target.with_name(f".{target.name}.writing-replaced")
    if target.exists():
        os.rename(target, old)
    os.rename(temporary, target)
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)
