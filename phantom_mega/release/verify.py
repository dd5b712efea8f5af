"""The proof of an export: opened strictly in a process without this project, it computes what the megatron model does.

Both sides run in processes of their own and write their answer to the same inputs into a file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from phantom_mega import memory
from phantom_mega.checkpoint.reader import CheckpointReader
from phantom_mega.config_io import load_run_config
from phantom_mega.errors import UserError

TOLERANCE = 1e-4
# What a process takes before any weight is loaded: torch, diffusers, megatron.
BASE_MEMORY = 2 << 30
# Two samples of one pack: several windows and references, and none.
SHAPES = ((11, 2, 3, 2, 5, 3), (2, 3, 2, 0, 4, 3))
# Run with -I and without this project: as somebody who has only the folder.
_PLAIN = """
import importlib.abc, json, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("phantom_mega", "megatron"):
            raise ModuleNotFoundError(f"{name} is not to be used by an export")
sys.meta_path.insert(0, Absent())
import torch
from diffusers import DiffusionPipeline
folder, inputs, out = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)
if None not in (pipe.vae, pipe.text_encoder, pipe.tokenizer, pipe.image_encoder):
    grey = torch.full((16, 16, 3), 128, dtype=torch.uint8).numpy()
    least = dict(height=16, width=16, num_frames=1, num_inference_steps=1, output_type="pt")
    frames = pipe("a test", [grey], generator=torch.Generator().manual_seed(0), **least).frames
    assert tuple(frames.shape) == (1, 1, 3, 16, 16) and frames.isfinite().all(), "the pipeline makes no video"
problems = {}
for name in ("vae", "image_encoder", "text_encoder", "transformer"):
    if getattr(pipe, name) is None:
        continue
    cls = type(getattr(pipe, name))
    setattr(pipe, name, None)
    model, found = cls.from_pretrained(folder, subfolder=name, dtype=torch.float32, output_loading_info=True)
    if name == "text_encoder":  # its files may hold more than is read: a language model's head
        found = {"missing_keys": [key for key in found["missing_keys"] if not key.startswith(("pooler.", "decoder."))]}
    problems |= {f"{name} {kind}": sorted(map(str, keys)) for kind, keys in found.items() if keys}
given = torch.load(inputs, weights_only=True)
shape = sys.modules[cls.__module__].SampleShape
layout = model.eval().layout([shape(*numbers) for numbers in given["shapes"]])
with torch.no_grad():
    sample = model(given["visual"], given["timestep"], given["text"], given["clip"], layout).sample
torch.save({"sample": sample, "problems": json.dumps(problems, default=list)}, out)
"""


def memory_needed(nbytes_float32: int, export: Path) -> int:
    """Bytes that the check takes at once: the model in float32 and as much again while it is read, all encoders too.

    Args:
        nbytes_float32: of the model.
        export: its folder; encoders in bfloat16 are loaded in float32.
    """
    encoders = sum(path.stat().st_size for path in export.glob("*/*.safetensors") if path.parent.name != "transformer")
    return BASE_MEMORY + 2 * nbytes_float32 + 2 * encoders


def fits(nbytes_float32: int, export: Path) -> bool:
    """Whether there is memory for the check of an export."""
    return memory_needed(nbytes_float32, export) < memory.available()


def make_inputs(config) -> dict:
    """Seeded inputs of the model, as the plain and the megatron model take them."""
    generator, model = torch.Generator().manual_seed(0), config.model
    most = model.max_references
    if model.window_frames and model.reference_injection == "displace":
        most = min(most, model.window_frames - 1)  # a window keeps one frame of the video
    shapes = [(*shape[:3], min(shape[3], most), *shape[4:]) for shape in SHAPES]
    visual = sum((frames + references) * height * width for frames, height, width, references, *_ in shapes)
    clip = sum(shape[3] * shape[5] for shape in shapes)
    randn = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    return {
        "shapes": shapes,
        "visual": randn(visual, 4 * model.latent_channels),
        "timestep": torch.tensor([0.3, 0.8]),
        "text": randn(sum(shape[4] for shape in shapes), model.text_dim),
        "clip": randn(clip, model.clip_dim),
    }


def verify(export: Path, checkpoint: Path, weights: str, dtype: torch.dtype) -> float:
    """Compare an export with the megatron model on the checkpoint's weights.

    Args:
        export: the folder.
        checkpoint: the `iter_...` folder that it was made from.
        weights: `ema` or `raw`.
        dtype: of the exported weights, to which the checkpoint's are rounded too; both sides compute in float32.

    Returns:
        The largest difference, relative to the largest value.

    Raises:
        UserError: the export does not load strictly, or computes something else.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save(make_inputs(load_run_config(checkpoint / "config.yaml")), folder / "inputs.pt")
        given = [str(export.resolve()), str(folder / "inputs.pt"), str(folder / "plain.pt")]
        _run(["-I", "-c", _PLAIN, *given], "opening the export without this project", folder)
        kind = str(dtype).removeprefix("torch.")
        given = [str(checkpoint.resolve()), weights, kind, str(folder / "inputs.pt"), str(folder / "core.pt")]
        _run(["-m", "phantom_mega.release.verify", *given], "running the megatron model", folder)
        plain, core = (torch.load(folder / f"{side}.pt", weights_only=True) for side in ("plain", "core"))
    problems = json.loads(plain["problems"])
    if problems:
        raise UserError(f"the export does not load strictly: {problems}")
    scale = core["sample"].abs().max().item()
    # A model that was never trained gives zeros.
    difference = (plain["sample"] - core["sample"]).abs().max().item() / (scale or 1.0)
    if not difference < TOLERANCE:
        raise UserError(f"the export computes something else than the trained model: relative difference {difference}")
    return difference


def _run(words: list[str], what: str, folder: Path) -> None:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "HF_MODULES_CACHE": str(folder / "modules")}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])  # -I does not read it
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise UserError(f"{what} failed: {lines[-1] if lines else f'exit code {done.returncode}'}")


def run_core(checkpoint: Path, weights: str, dtype: str, inputs: Path, out: Path) -> None:
    """The megatron model's answer, on one CPU rank; in a process of its own."""
    from phantom_mega.checkpoint.plain import plain_weights
    from phantom_mega.config import ParallelConfig, PrecisionConfig
    from phantom_mega.core.build import build_model
    from phantom_mega.core.convert import load_hf
    from phantom_mega.core.parallel_config import initialize_distributed
    from phantom_mega.geometry import SampleShape
    from phantom_mega.packs import PackInputs, PackLayout
    from phantom_mega.windows import WindowSpec

    config, reader = load_run_config(checkpoint / "config.yaml"), CheckpointReader(checkpoint)
    parallel = ParallelConfig(transformer_impl="local")
    initialize_distributed(parallel)
    chunks = build_model(config.model, parallel, PrecisionConfig(), seed=0)
    rounded = (
        (name, tensor.to(getattr(torch, dtype)).float())
        for name, tensor in plain_weights(reader, config.model.num_attention_heads, weights)
    )
    load_hf(chunks, dict(rounded))
    given = torch.load(inputs, weights_only=True)
    shapes = [SampleShape(*numbers) for numbers in given["shapes"]]
    layout = PackLayout.build(shapes, WindowSpec.of(config.model), config.model.rope_axes_dim, config.model.rope_theta)
    with torch.no_grad():
        sample = chunks[0].eval()(PackInputs(given["visual"], given["timestep"], given["text"], given["clip"], layout))
    torch.save({"sample": sample}, out)


if __name__ == "__main__":
    run_core(Path(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4]), Path(sys.argv[5]))
