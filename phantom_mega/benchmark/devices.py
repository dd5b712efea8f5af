"""The device and the software that a number belongs to, and the speeds that it is compared with."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
from pathlib import Path

import torch

from phantom_mega.benchmark.timing import Clock, Spread, tflops

_PACKAGES = ("torch", "megatron-core", "transformer-engine", "diffusers", "triton", "numpy")


def device_name(device: torch.device) -> str:
    """Name of the GPU, or the CPU's with the number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def measured_matmul(device: torch.device, dtype: torch.dtype, side: int, repeats: int = 20) -> dict:
    """The product of two square matrices of random numbers, by the vendor's library.

    Returns:
        `side`, `ms` (Spread) and `tflops` of the median.
    """
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    clock = Clock(device)
    for _ in range(5):
        a @ b
    spread = Spread.of(clock.time(lambda: a @ b) for _ in range(repeats))
    return {"side": side, "ms": spread, "tflops": tflops(2.0 * side**3, spread.median)}


def versions() -> dict[str, str | None]:
    """Versions of what the numbers depend on; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    found["cuda"] = torch.version.cuda if torch.cuda.is_available() else None
    found["cudnn"] = str(torch.backends.cudnn.version()) if torch.cuda.is_available() else None
    found["driver"] = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return found


def commit() -> str | None:
    """The checkout's commit, with `+changes` if files differ from it; None outside a checkout."""
    folder = str(Path(__file__).parent)
    revision = _output("git", "-C", folder, "rev-parse", "--short=12", "HEAD")
    if revision and _output("git", "-C", folder, "status", "--porcelain", "--untracked-files=no"):
        revision += "+changes"
    return revision


def _output(*command: str) -> str | None:
    """First line that a command prints; None where it is not installed, fails or prints nothing."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    return lines[0].strip() if lines else None
