"""Transformer Engine's own classes on a machine without a GPU, as far as they go: all but their kernels.

Run as a process of its own, for it lets them believe that there is a GPU. Builds the model and the optimizer, fills
their state, writes a checkpoint, spoils the state and reads it back; prints what it found as JSON.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import torch

from phantom_mega.config import ParallelConfig, PrecisionConfig, RunConfig
from tests.parallel import reference


def import_core_with_engine():
    """`phantom_mega.core` for the CPU, with Transformer Engine left in megatron's sight."""
    import phantom_mega

    package = types.ModuleType("phantom_mega.core")
    package.__path__ = [str(Path(phantom_mega.__file__).parent / "core")]
    sys.modules["phantom_mega.core"] = phantom_mega.core = package
    from phantom_mega.core import cpu_backend, fused_libraries

    cpu_backend.install()
    from phantom_mega.core import megatron_fixes

    megatron_fixes.apply()
    fused_libraries.find = lambda: fused_libraries.FusedLibraries(transformer_engine="there")
    return fused_libraries.find()


def build(run: RunConfig):
    """Chunks and optimizer; constructors see a Hopper GPU."""
    from phantom_mega.core import build as core_build
    from phantom_mega.training import optimizer as optim

    core_build.require_fp8 = lambda precision: None
    hopper = types.SimpleNamespace(major=9, minor=0, multi_processor_count=132, name="Hopper")
    torch.cuda.get_device_capability = lambda *args: (hopper.major, hopper.minor)
    torch.cuda.get_device_properties = lambda *args: hopper
    torch.cuda.is_available = lambda: True
    chunks = core_build.build_model(run.model, run.parallel, run.precision, seed=1)
    torch.cuda.is_available = lambda: False
    wrapped = core_build.wrap_ddp(chunks, chunks[0].config, run.parallel)
    return chunks, optim.build_optimizer(wrapped, run)


def tensors(chunks: list, optimizer) -> list[torch.Tensor]:
    """All state that a step changes beside the weights: moments, averages, scales and their histories."""
    from phantom_mega.training.optimizer import _main_params

    part = optimizer.chained_optimizers[0]
    found = [value for param in _main_params(part) for value in part.optimizer.state[param].values()]
    for linear in (module for module in chunks[0].modules() if "scaling_fwd" in getattr(module, "fp8_meta", {})):
        for way in ("scaling_fwd", "scaling_bwd"):
            found += [linear.fp8_meta[way].scale, linear.fp8_meta[way].amax_history]
    return found


def start_scaling(chunks: list) -> int:
    """What the first FP8 forward pass allocates; returns the number of linears."""
    from megatron.core.fp8_utils import get_fp8_recipe

    linears = [module for module in chunks[0].modules() if hasattr(module, "fp8_meta")]
    for linear in linears:
        recipe = get_fp8_recipe(chunks[0].config)
        linear.fp8_meta.update(recipe=recipe, num_gemms=1, fp8_checkpoint=True)
        linear.init_fp8_meta_tensors(recipe)
    return len(linears)


def main(folder: Path) -> dict:
    libraries = import_core_with_engine()
    from megatron.core.optimizer import clip_grads

    from phantom_mega.core.kernels import kernel_lines
    from phantom_mega.core.parallel_config import initialize_distributed
    from phantom_mega.training import checkpoint
    from phantom_mega.training import optimizer as optim

    fp8 = PrecisionConfig(bf16=True, fp8="hybrid", fp8_recipe="delayed", fp8_amax_history_len=4)
    run = RunConfig(model=reference.MODEL, parallel=ParallelConfig(), precision=fp8)
    initialize_distributed(run.parallel)
    chunks, optimizer = build(run)
    inner = optimizer.chained_optimizers[0].optimizer
    result = {"linears": start_scaling(chunks), "steps": []}
    result["fused"] = all(
        module.fuse_wgrad_accumulation for module in chunks[0].modules() if hasattr(module, "fp8_meta")
    )
    result["kernels"] = kernel_lines(
        chunks[0].config, "transformer_engine", "te", type(inner), clip_grads.l2_norm_impl, libraries
    )
    for tensor in tensors(chunks, optimizer):
        tensor.uniform_(1, 2)
    for group in inner.param_groups:
        group["step"] = 7
    before = [tensor.clone() for tensor in tensors(chunks, optimizer)]
    scheduler = optim.build_scheduler(optimizer, run)
    checkpoint.CheckpointSaver(folder, run).save(7, chunks, optimizer, scheduler, {"consumed_samples": 0})
    for tensor in tensors(chunks, optimizer):
        tensor.zero_()
    for group in inner.param_groups:
        del group["step"]  # as before the first step
    path = checkpoint.choose_checkpoint(folder, hashes=True, own=True)
    checkpoint.load_checkpoint(path, chunks, optimizer, scheduler, run)
    after = tensors(chunks, optimizer)
    result["tensors"] = len(after)
    result["equal"] = len(after) == len(before) and all(map(torch.equal, after, before))
    result["steps"] = sorted({group["step"] for group in inner.param_groups})
    result["state"] = sorted(next(iter(inner.state.values())))
    optim.reset_moments(optimizer)
    state = next(iter(inner.state.values()))
    result["reset"] = [float(state[key].abs().max()) for key in optim.MOMENTS], float(state["ema"].min()) >= 1
    result["reset_steps"] = sorted({group["step"] for group in inner.param_groups})
    return result


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
