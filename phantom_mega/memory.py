"""How much memory a process can still take."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil

# By version of cgroups: limit, use, and what of the use is file cache that would be given up.
_FILES = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def available(groups: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process can still take: of the machine, and of the cgroups that a Slurm job or a container has.

    Args:
        groups: the kernel's list of this process's cgroups, of either version.
        mount: where cgroups are mounted.
    """
    free = psutil.virtual_memory().available
    for version, group in _groups(groups, mount):
        limit, used, cache = _FILES[version]
        # A group that is not mounted here, or has no limit: what its parents and the machine have counts.
        with contextlib.suppress(OSError, ValueError):
            room = int((group / limit).read_text()) - int((group / used).read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            free = min(free, room + int(stat.get(cache, 0)))
    return max(free, 0)


def _groups(groups: Path, mount: Path) -> Iterator[tuple[int, Path]]:
    """(version, folder) of every cgroup that bounds this process's memory, from the inside out."""
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, inside = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        version = 1 if controllers else 2
        root = mount / "memory" if version == 1 else mount
        group = root / inside.lstrip("/")
        while group != root.parent:
            yield version, group
            group = group.parent
