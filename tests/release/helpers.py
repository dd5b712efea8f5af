"""Whole checkpoints of small models without a trainer, and processes that see some libraries and not this project."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from packaging.requirements import Requirement
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter, save

from phantom_mega.checkpoint import integrity
from phantom_mega.config import ModelConfig, ResolutionConfig, RunConfig
from phantom_mega.config_io import to_yaml
from phantom_mega.generation.load import model_arguments
from phantom_mega.hf import PhantomTransformer3DModel
from phantom_mega.hf.naming import core_name
from tests.checkpoint.helpers import COMMON, EXTRA, describe

MODEL = ModelConfig(
    num_layers=3, hidden_size=32, num_attention_heads=4, ffn_hidden_size=64, latent_channels=48, timestep_dim=16,
    rope_axes_dim=[4, 2, 2], window_frames=3, max_references=2,
)  # fmt: skip
REPOSITORY = Path(__file__).resolve().parents[2]
INSTALLED = ("torch", "diffusers", "transformers", "open_clip_torch")


def run_config(model: ModelConfig = MODEL) -> RunConfig:
    """The configuration of a tiny run."""
    config = RunConfig(model=model)
    config.data.resolutions = {"32p": ResolutionConfig(32 * 32, [1, 5], 1.0)}
    config.data.aspect_ratios, config.data.max_text_tokens = ["1:1"], 20
    return config


def core_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a model's checkpoint, by its key."""
    with torch.device("meta"):
        state = PhantomTransformer3DModel(**model_arguments(RunConfig(model=model))).state_dict()
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in state.items():
        key, shape = core_name(name), tuple(tensor.shape)
        shapes[key] = (shapes[key][0] + shape[0], *shape[1:]) if key in shapes else shape
    return shapes


def write_checkpoint(
    folder: Path, config: RunConfig | None = None, *, bf16: bool = False, ema: bool = True, distinct: bool = True,
    change: dict | None = None,
) -> Path:  # fmt: skip
    """A checkpoint with every tensor of its model, as the trainer writes it.

    Args:
        folder: the new `iter_...` folder.
        config: of the run.
        bf16: weights in bf16, their fp32 copies in the optimizer.
        ema: with averaged weights.
        distinct: every value is another one; False fills each tensor with one number and needs no memory for it.
        change: tensors by key that take the place of those of the model; None removes one.
    """
    config = config or run_config()
    state: dict = {}
    generator = torch.Generator().manual_seed(0)
    for kind in ("", "optimizer.state.param.", *(["optimizer.state.ema."] if ema else [])):
        for key, shape in core_shapes(config.model).items():
            scale = 1 / shape[-1] ** 0.5 if len(shape) == 2 else 0.3
            same = torch.tensor(1 / shape[-1]).expand(shape)
            state[kind + key] = scale * torch.randn(shape, generator=generator) if distinct else same
    if bf16:
        for key in core_shapes(config.model):
            state[key] = state[f"optimizer.state.param.{key}"].bfloat16()
    for key, tensor in (change or {}).items():
        state[key] = tensor
    state = {key: tensor for key, tensor in state.items() if tensor is not None}
    state[COMMON] = [{"content_metadata": {"version": 1}}]
    state[EXTRA] = [None]
    planner = DefaultSavePlanner(flatten_state_dict=False)
    save(state, storage_writer=FileSystemWriter(folder, sync_files=False), planner=planner, no_dist=True)
    describe(folder, config.model)
    (folder / "config.yaml").write_text(to_yaml(config))
    integrity.write_manifest(folder)
    return folder


def expected(reader, name: str, kind: str) -> torch.Tensor:
    """A tensor of the plain model, cut out of its core tensor by other means than the export's."""
    heads = MODEL.num_attention_heads
    for i, projection in enumerate(("to_q", "to_k", "to_v")):
        if f".{projection}." in name:
            fused = reader.read(kind + core_name(name))
            rows = torch.arange(len(fused)).reshape(heads, 3, -1)[:, i].flatten()
            return fused[rows]
    return reader.read(kind + core_name(name))


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
