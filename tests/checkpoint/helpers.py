"""Checkpoints in the trainer's format, written by torch's own writer, of any size and without a trainer."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter, save

from phantom_mega.checkpoint import integrity, rewrite
from phantom_mega.config import ModelConfig, RunConfig, model_arguments
from phantom_mega.config_io import to_yaml
from phantom_mega.hf import PhantomTransformer3DModel
from phantom_mega.hf.naming import core_name, hf_names

COMMON = "common_state/shard_0_1"
EXTRA = "blocks.0.visual.linear_qkv._extra_state/shard_0_1"


def weights(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of a few tensors of each kind that a model has: split along either dimension, whole, on each stage."""
    C, F = model.hidden_size, model.ffn_hidden_size
    shapes = {"visual_embedder.weight": (C, 8), "timestep_embedder.0.bias": (C,), "final_proj.weight": (8, C)}
    for i in range(model.num_layers):
        shapes |= {
            f"blocks.{i}.visual.linear_qkv.weight": (3 * C, C),
            f"blocks.{i}.visual.linear_qkv.bias": (3 * C,),
            f"blocks.{i}.visual.linear_proj.weight": (C, C),
            f"blocks.{i}.visual.linear_proj.bias": (C,),
            f"blocks.{i}.visual.mlp.linear_fc1.weight": (F, C),
            f"blocks.{i}.visual.mlp.linear_fc2.weight": (C, F),
            f"blocks.{i}.visual.q_layernorm.weight": (C // model.num_attention_heads,),
        }
    return shapes


def all_weights(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of every tensor of a model."""
    with torch.device("meta"):
        plain = PhantomTransformer3DModel(**model_arguments(model))
    shapes = {}
    for name, tensor in plain.state_dict().items():
        core = core_name(name)
        shapes[core] = (len(hf_names(core)) * tensor.shape[0], *tensor.shape[1:])
    return shapes


def write_checkpoint(
    folder: Path, model: ModelConfig, *, distinct: bool = True, optimizer: bool = True, shapes: dict | None = None
) -> Path:
    """A checkpoint of a model, its tensors whole.

    Args:
        folder: the new `iter_...` folder.
        model: its sizes.
        distinct: every value is another one; False fills each tensor with one number and needs no memory for it.
        shapes: of its tensors; `weights(model)` by default.
        optimizer: with `param`, `exp_avg`, `exp_avg_sq` and `ema` of each weight.

    Returns:
        `folder`.
    """
    state: dict = {}
    generator = torch.Generator().manual_seed(0)
    kinds = ("param", "exp_avg", "exp_avg_sq", "ema") if optimizer else ()
    for kind in ("", *(f"optimizer.state.{kind}." for kind in kinds)):
        for key, shape in (shapes or weights(model)).items():
            if distinct:
                state[kind + key] = torch.randn(shape, generator=generator)
            else:
                state[kind + key] = torch.tensor(float(len(state))).expand(shape)
    groups = {"optimizer": {"optimizer": {"param_groups": [{"lr": 1e-4, "step": 3.0}]}}, "scheduler": {"num_steps": 3}}
    state[COMMON] = [{**(groups if optimizer else {}), "content_metadata": {"version": 1}}]
    state[EXTRA] = [None]
    planner = DefaultSavePlanner(flatten_state_dict=False)
    save(state, storage_writer=FileSystemWriter(folder, sync_files=False), planner=planner, no_dist=True)
    describe(folder, model)
    return folder


def describe(folder: Path, model: ModelConfig) -> None:
    """Write the descriptions beside the tensors, with the digests of all."""
    (folder / "config.yaml").write_text(to_yaml(RunConfig(model=model)))
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1}))
    (folder / "trainer_state.json").write_text(json.dumps({"iteration": 3, "consumed_samples": 6}))
    integrity.write_manifest(folder)


def write_one_wrong_bit(monkeypatch, part: int) -> None:
    """Let checkpoints be written with the last bit of that part's last value turned, as a bad disk does."""
    save, count = rewrite._save, [0]

    def save_wrong(whole, where, file):
        count[0] += 1
        if count[0] == part:
            whole = whole.clone()
            whole.view(torch.int32).view(-1)[-1] ^= 1
        save(whole, where, file)

    monkeypatch.setattr(rewrite, "_save", save_wrong)
