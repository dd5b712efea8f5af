"""Does an export open without this project, and compute what the model that was trained computes?

Two processes, one after the other, so that the model is in memory once: `open_release` loads the folder with diffusers
alone, `core_forward` is the megatron model on one CPU rank. Both get the same pack, in float32.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file, save_file

from phantom_mega.config import ModelConfig
from phantom_mega.errors import UserError
from phantom_mega.geometry import PATCH, SampleShape
from phantom_mega.release.bundle import SOURCE_ROOT
from phantom_mega.release.export import Source

# Largest difference of two velocities, relative to the largest velocity: float32 rounding through all blocks.
TOLERANCE = 1e-4
# What a process with torch, diffusers and megatron takes before any weight.
BASE_MEMORY = 2 << 30
_OPEN = Path(__file__).with_name("open_release.py")
# A launcher's rendezvous, which a process of its own must not join; torch's hub cache of code.
_LEFT_OUT = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PYTHONPATH")


@dataclass(frozen=True)
class Verified:
    """What was found.

    Attributes:
        difference: largest absolute difference of the two velocities.
        scale: largest absolute velocity of the megatron model.
        tensors: tensors that were compared with the files, by component.
        pipeline: whether the pipeline was whole and made a video.
    """

    difference: float
    scale: float
    tensors: dict[str, int]
    pipeline: bool


def needed_memory(source: Source, folder: Path) -> int:
    """Bytes that the larger of the two processes takes, about: all in float32, and a file's pages."""
    parameters = sum(param.numel() for param in source.model.parameters())
    encoders = sum(path.stat().st_size for path in folder.rglob("*.safetensors") if path.parent.name != "transformer")
    # An encoder in bfloat16 becomes float32, and the text encoder is loaded twice.
    return BASE_MEMORY + int(4.4 * parameters) + 4 * encoders


def free_memory() -> int:
    """Bytes that a process can still take: of the machine, and of the cgroup that a Slurm job or container has."""
    free = psutil.virtual_memory().available
    try:
        inside = Path("/proc/self/cgroup").read_text().split("::", 1)[1].strip().lstrip("/")
        group = Path("/sys/fs/cgroup", inside)
        while group != group.parent and (group / "memory.max").is_file():
            limit = (group / "memory.max").read_text().strip()
            if limit != "max":
                free = min(free, int(limit) - int((group / "memory.current").read_text()))
            group = group.parent
    except (OSError, IndexError, ValueError):
        pass  # an older kernel: the machine's memory is all that is known
    return free


def make_inputs(model: ModelConfig, path: Path) -> None:
    """Write one pack of three samples: more frames than a window has, the most references, and none."""
    references = model.max_references
    if model.window_frames and model.reference_injection == "displace":
        references = min(references, model.window_frames - 1)
    frames = (model.window_frames or 2) + 2
    shapes = [SampleShape(frames, 2, 3, references, 5, 3), SampleShape(1, 2, 2, min(1, references), 4, 3)]
    shapes.append(SampleShape(3, 3, 2, 0, 6, 3))
    generator = torch.Generator().manual_seed(0)

    def draw(rows: int, width: int) -> torch.Tensor:
        return torch.randn(rows, width, generator=generator)

    pack = {
        "visual": draw(sum(shape.visual_tokens for shape in shapes), model.latent_channels * PATCH[1] * PATCH[2]),
        "timestep": torch.rand(len(shapes), generator=generator),
        "text": draw(sum(shape.text_tokens for shape in shapes), model.text_dim),
        "clip": draw(sum(shape.references * shape.clip_tokens for shape in shapes), model.clip_dim),
    }
    fields = [[s.frames, s.height, s.width, s.references, s.text_tokens, s.clip_tokens] for s in shapes]
    save_file(pack, path, metadata={"shapes": json.dumps(fields)})


def verify(source: Source, folder: Path) -> Verified:
    """Load an export strictly in a process without this project and compare a forward pass with the megatron model.

    Args:
        source: what was exported.
        folder: the export.

    Raises:
        UserError: it does not open, a tensor is missing or left over, or the velocities differ.
    """
    with tempfile.TemporaryDirectory() as scratch:
        inputs, opened, core = (Path(scratch, name) for name in ("inputs", "opened", "core"))
        make_inputs(source.config.model, inputs)
        # -I: no user's packages, no PYTHONPATH, not this folder. The cache of code is the process's own.
        words = [sys.executable, "-I", str(_OPEN), str(folder.resolve()), str(inputs), str(opened)]
        printed = _run(words, "the export does not open", HF_MODULES_CACHE=scratch)
        checkpoint, dtype = source.reader.folder.resolve(), str(source.dtype).removeprefix("torch.")
        words = [sys.executable, "-m", "phantom_mega.release.core_forward", str(checkpoint), source.weights, dtype]
        _run([*words, str(inputs), str(core)], "the training model does not run", PYTHONPATH=str(SOURCE_ROOT))
        found, expected = (load_file(path)["velocity"] for path in (opened, core))
    difference, scale = float((found - expected).abs().max()), float(expected.abs().max())
    if not difference <= TOLERANCE * scale:
        raise UserError(
            f"the export computes something else than the model that was trained: velocities of up to {scale:.3g} "
            f"differ by {difference:.3g}; nothing was published"
        )
    report = json.loads(printed)
    return Verified(difference, scale, report["tensors"], report["pipeline"])


def _run(command: list[str], problem: str, **environment: str) -> str:
    """The last line that a process printed; on one CPU, in a rendezvous of its own, offline."""
    inherited = {name: value for name, value in os.environ.items() if name not in _LEFT_OUT}
    fixed = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, env=inherited | fixed | environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or (not lines and "-I" in command):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"{problem}: {last}; nothing was published")
    return lines[-1] if lines else ""
