"""`integrity.json`: a SHA-256 digest and a size for every file of a checkpoint, in megatron-core's manifest format.

Every rank hashes the files that it wrote, in its background writer, so no process reads the whole checkpoint again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

MANIFEST = "integrity.json"
# What is not part of a checkpoint: the manifest itself, and the digests that ranks leave for it.
_PART = ".integrity.rank_"
_BLOCK = 8 << 20


def hash_file(path: Path) -> str:
    """SHA-256 of a file, read in blocks of 8 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_part(folder: Path, names: Iterable[str], rank: int) -> None:
    """Leave the digests of the files that this rank wrote for `write_manifest`."""
    digests = {name: hash_file(folder / name) for name in names}
    (folder / f"{_PART}{rank}.json").write_text(json.dumps(digests))


def write_manifest(folder: Path, known: dict[str, str] | None = None) -> None:
    """Write `integrity.json` of all files of a folder.

    Args:
        folder: of the checkpoint.
        known: digests by file name; these files, and those that ranks hashed (`write_part`), are not read again.
    """
    parts = sorted(folder.glob(f"{_PART}*.json"))
    known = dict(known or {})
    for part in parts:
        known.update(json.loads(part.read_text()))
    for part in parts:
        part.unlink()
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)
    manifest = {
        "algorithm": "sha256",
        "files": {path.name: known.get(path.name) or hash_file(path) for path in files},
        "sizes": {path.name: path.stat().st_size for path in files},
    }
    with open(folder / MANIFEST, "w") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def verify(folder: Path, *, hashes: bool = True, share: int = 0, shares: int = 1) -> list[str]:
    """Compare a checkpoint's files with its manifest.

    Args:
        folder: of one checkpoint.
        hashes: read every file and compare digests; False compares names and sizes alone.
        share, shares: look at this part of the files only, so that ranks can divide the work; the parts are of about
            equal size.

    Returns:
        One line for each file that is missing, of another size, or changed; empty for a good checkpoint.
    """
    manifest, problem = _read_manifest(folder)
    if problem:
        return [problem] if share == 0 else []
    by_size = sorted(manifest["files"], key=lambda name: (-manifest["sizes"][name], name))
    problems = []
    for name in by_size[share::shares]:
        try:
            size, expected = (folder / name).stat().st_size, manifest["sizes"][name]
            if size != expected:
                problems.append(f"{name} has {size:,} bytes, not {expected:,}")
            elif hashes and hash_file(folder / name) != manifest["files"][name]:
                problems.append(f"{name} has changed since it was written (SHA-256 differs)")
        except FileNotFoundError:
            problems.append(f"{name} is missing")
        except OSError as error:
            problems.append(f"{name} cannot be read ({error.strerror})")
    return problems


def _read_manifest(folder: Path) -> tuple[dict, str | None]:
    """(manifest, what is wrong with it)."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        names = list(manifest["files"])
        described = set(manifest) == {"algorithm", "files", "sizes"} and set(names) == set(manifest["sizes"])
    except FileNotFoundError:
        return {}, f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return {}, f"{MANIFEST} cannot be read ({error})"
    if not described:
        return {}, f"{MANIFEST} is damaged: it must hold the algorithm, and a digest and a size for every file"
    if manifest["algorithm"] != "sha256":
        return {}, f"{MANIFEST} names the algorithm {manifest['algorithm']!r}; this release reads sha256"
    if any("/" in name or "\\" in name or name in ("..", ".") for name in names):
        return {}, f"{MANIFEST} names a file outside of the checkpoint"
    return manifest, None
