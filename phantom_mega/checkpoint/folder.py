"""The folder of a run's checkpoints: names, what is latest, publishing whole, falling back, keeping few.

    <run>/checkpoints/iter_0000100/                       sharded tensors (torch_dist), config.yaml, trainer_state.json,
                                                          integrity.json
    <run>/checkpoints/latest_checkpointed_iteration.txt
A checkpoint is written under a hidden name and renamed when whole; the text file changes after that. So at every
moment, whatever dies, the text file names a complete checkpoint.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from phantom_mega.checkpoint.integrity import MANIFEST
from phantom_mega.errors import UserError
from phantom_mega.files import sync

LATEST = "latest_checkpointed_iteration.txt"
STATE = "trainer_state.json"
_NAME = re.compile(r"iter_(\d{7,})")


def checkpoint_root(run: Path) -> Path:
    """Folder of a run's checkpoints."""
    return run / "checkpoints"


def checkpoint_name(iteration: int) -> str:
    """`iter_0000100`."""
    return f"iter_{iteration:07d}"


def iteration_of(path: Path) -> int:
    """The number in a checkpoint's name; -1 for another name."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def find_root(path: str | os.PathLike) -> Path | None:
    """The folder of checkpoints that a path names: itself, or that of a run; None where nothing was saved yet."""
    path = Path(path)
    return next((root for root in (checkpoint_root(path), path) if (root / LATEST).is_file()), None)


def find_checkpoint(path: str | os.PathLike) -> Path | None:
    """The checkpoint that a path names: a run's folder, its `checkpoints` folder, or one `iter_...` folder.

    Returns:
        The `iter_...` folder, or None where nothing has been saved yet.

    Raises:
        UserError: the text file does not hold a number, or names a checkpoint that is not there.
    """
    path = Path(path)
    if (path / STATE).is_file():
        return path
    root = find_root(path)
    if root is None:
        return None
    found = root / checkpoint_name(read_latest(root))
    if not (found / STATE).is_file():
        raise UserError(f"{root / LATEST} names {found.name}, which is missing or incomplete")
    return found


def read_latest(root: Path) -> int:
    """The iteration that the text file names.

    Raises:
        UserError: it holds something else.
    """
    text = (root / LATEST).read_text().strip()
    if not text.isdecimal():
        raise UserError(f"{root / LATEST} holds {text[:40]!r}; write the number of an iteration, as 100, into it")
    return int(text)


def list_checkpoints(root: Path) -> list[Path]:
    """Complete checkpoints by iteration, oldest first (complete: published, with all descriptions)."""
    found = [path for path in root.glob("iter_*") if iteration_of(path) >= 0 and (path / MANIFEST).is_file()]
    return sorted(found, key=iteration_of)


def candidates(path: str | os.PathLike) -> list[Path]:
    """Checkpoints to try in turn: the one that is named, then older ones of the same folder, newest first.

    Returns:
        Empty where nothing has been saved yet. An `iter_...` folder stands for itself alone: who names one wants it.
    """
    path = Path(path)
    if iteration_of(path) >= 0:
        return [path] if path.is_dir() else []
    root = find_root(path)
    if root is None:
        return [path] if (path / STATE).is_file() else []
    latest = read_latest(root)
    older = [found for found in reversed(list_checkpoints(root)) if iteration_of(found) < latest]
    return [root / checkpoint_name(latest), *older]


def open_temporary(root: Path, iteration: int, tag: str) -> Path:
    """A new hidden folder to write a checkpoint into.

    Args:
        root: folder of checkpoints.
        iteration: of the checkpoint.
        tag: unique to this start of the run, so that a writer that outlived its run cannot write into the folder of
            the next one.
    """
    temporary = root / f".{checkpoint_name(iteration)}.saving-{tag}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def publish(temporary: Path, iteration: int) -> Path:
    """Give a complete checkpoint its name, then name it the latest; each by one atomic rename, synced to disk.

    Returns:
        The `iter_...` folder.
    """
    root = temporary.parent
    final = root / checkpoint_name(iteration)
    for path in temporary.iterdir():
        sync(path)
    sync(temporary)
    if final.exists():  # from a run that was set back by hand; the text file names an older one
        _remove(final)
    os.rename(temporary, final)
    sync(root)
    write_latest(root, iteration)
    return final


def write_latest(root: Path, iteration: int) -> None:
    """Name the latest checkpoint."""
    temporary = root / f".{LATEST}.tmp"
    temporary.write_text(str(iteration))
    sync(temporary)
    os.replace(temporary, root / LATEST)
    sync(root)


def set_aside(path: Path, latest: int | None) -> Path:
    """Hide a damaged checkpoint as `.iter_0000100.damaged`, after naming the older one that is used in its place.

    Args:
        path: the damaged `iter_...` folder (which may be missing).
        latest: iteration to name the latest; None leaves the text file alone.

    Returns:
        Where it is now.
    """
    if latest is not None:
        write_latest(path.parent, latest)
    hidden = path.with_name(f".{path.name}.damaged")
    if path.exists():
        shutil.rmtree(hidden, ignore_errors=True)
        os.rename(path, hidden)
    return hidden


def remove_leftovers(root: Path) -> None:
    """Remove what a killed run left half written or half removed; call before the first save of a start."""
    for path in [*root.glob(".iter_*.saving-*"), *root.glob(".iter_*.removing")]:
        shutil.rmtree(path, ignore_errors=True)


def apply_retention(root: Path, most_recent_k: int, save_retain_interval: int | None) -> list[Path]:
    """Remove checkpoints that are neither among the newest nor kept for good.

    Args:
        root: folder of checkpoints.
        most_recent_k: newest checkpoints to keep; 0 or less keeps all.
        save_retain_interval: checkpoints of iterations divisible by this are never removed.

    Returns:
        What was removed.
    """
    if most_recent_k <= 0:
        return []
    latest = read_latest(root)
    known = [path for path in list_checkpoints(root) if iteration_of(path) <= latest]
    removed = []
    for path in known[:-most_recent_k]:
        if not (save_retain_interval and iteration_of(path) % save_retain_interval == 0):
            _remove(path)
            removed.append(path)
    return removed


def _remove(path: Path) -> None:
    """Remove a checkpoint; cut off in the middle, no part of it is left under a checkpoint's name."""
    hidden = path.with_name(f".{path.name}.removing")
    shutil.rmtree(hidden, ignore_errors=True)
    os.rename(path, hidden)
    shutil.rmtree(hidden, ignore_errors=True)
