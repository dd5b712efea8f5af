"""Processes that see the libraries an export needs, with what those require, and nothing else that is installed."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

INSTALLED = ("torch", "diffusers", "transformers", "open_clip_torch")


def library_folder(folder: Path) -> Path:
    """A folder of links to `INSTALLED` and all that they require: what a fresh environment with them would hold."""
    wanted, seen = list(INSTALLED), set()
    folder.mkdir()
    while wanted:
        name = re.sub(r"[-_.]+", "-", wanted.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        distribution = importlib.metadata.distribution(name)
        for text in distribution.requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wanted.append(requirement.name)
        for top in {file.parts[0] for file in distribution.files if file.parts[0] != ".."}:
            source = Path(distribution.locate_file(top))
            if source.exists() and top != "__pycache__" and not (folder / top).exists():
                (folder / top).symlink_to(source)
    return folder


def run_alone(libraries: Path, code: str, cwd: Path) -> str:
    """Run Python code that sees the standard library and one folder of libraries, nothing else; returns its output."""
    start = f"import sys; sys.path.append({str(libraries)!r})\n"
    environment = {
        "HOME": str(cwd), "PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
        "HF_MODULES_CACHE": str(cwd / "modules"), "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", start + code],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
