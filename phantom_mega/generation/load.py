"""A pipeline from what there is: an exported folder or a training checkpoint. No code of the folder is run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX, FlowMatchEulerDiscreteScheduler
from transformers import AutoModel, AutoTokenizer

from phantom_mega.checkpoint import integrity, plain, safe
from phantom_mega.checkpoint.folder import find_checkpoint
from phantom_mega.checkpoint.reader import CheckpointReader
from phantom_mega.conditioning.linear_vae import LinearVideoVAE
from phantom_mega.conditioning.text import quiet_loading
from phantom_mega.config import RunConfig, model_arguments
from phantom_mega.config_io import load_run_config
from phantom_mega.errors import UserError
from phantom_mega.hf import PhantomTransformer3DModel
from phantom_mega.hf.pipeline_phantom import OPTIONAL, PhantomPipeline
from phantom_mega.hf.vision_tower import PhantomVisionTower

INDEX = "model_index.json"
FLOW_FIELDS = ("shift_min", "shift_max", "shift_min_pixels", "shift_max_pixels")
VAES = {"AutoencoderKLCogVideoX": AutoencoderKLCogVideoX, "LinearVideoVAE": LinearVideoVAE}


def pipeline_settings(config: RunConfig) -> dict:
    """The pipeline's config arguments, from the configuration of a training run."""
    conditioning = dataclasses.asdict(config.conditioning)
    del conditioning["cached_features"]
    return {
        "conditioning": conditioning,
        "flow": {name: getattr(config.flow, name) for name in FLOW_FIELDS},
        "max_text_tokens": config.data.max_text_tokens,
        "frame_rate": config.data.frame_rate,
    }


def make_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Euler steps; the pipeline passes the shift for the video's size."""
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear")


def load_pipeline(
    path: Path | str, dtype: torch.dtype = torch.float32, weights: str | None = None, verify: bool = True
) -> tuple[PhantomPipeline, dict]:
    """The pipeline of an exported folder, or of a run's latest checkpoint, on the CPU; and where it is from.

    Args:
        path: an export, a run's folder or one of its `iter_...` folders.
        dtype: of the transformer, the VAE and the vision tower; the text encoder's is that of its recipe.
        weights: `ema` or `raw` weights of a training checkpoint; None takes the average where there is one.
        verify: compare a checkpoint's files with their digests.

    Raises:
        UserError: the folder is none of these, or damaged.
    """
    path = Path(path)
    if (path / INDEX).is_file():
        if weights is not None:
            raise UserError(f"{path} is an export: which weights it holds was chosen then; leave the choice out")
        return _from_export(path, dtype), {"checkpoint": str(path.resolve())}
    checkpoint = find_checkpoint(path) if path.is_dir() else None
    if checkpoint is None:
        raise UserError(f"{path} is neither an export ({INDEX}) nor a training run or checkpoint (iter_...)")
    return _from_checkpoint(checkpoint, dtype, weights, verify)


def _from_checkpoint(
    folder: Path, dtype: torch.dtype, weights: str | None, verify: bool
) -> tuple[PhantomPipeline, dict]:
    safe.check(folder)
    problems = integrity.verify(folder, hashes=verify)
    if problems:
        raise UserError(f"{folder} is damaged: {'; '.join(problems[:5])}")
    config, reader = load_run_config(folder / "config.yaml"), CheckpointReader(folder)
    weights = plain.choose_weights(reader, weights)
    with torch.device("meta"):
        model = PhantomTransformer3DModel(**model_arguments(config.model))
    # One tensor at a time: the fp32 checkpoint of a bf16 model need not fit twice.
    state = {
        name: tensor.to(dtype)
        for name, tensor in plain.plain_weights(reader, config.model.num_attention_heads, weights)
    }
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        reason = str(error).split("\n")[1].strip() if "\n" in str(error) else str(error)
        raise UserError(f"{folder} does not hold the model that its config.yaml describes: {reason}") from None
    pipe = PhantomPipeline(model.eval(), make_scheduler(), **pipeline_settings(config))
    return pipe, {"checkpoint": str(folder.resolve()), "weights": weights}


def _from_export(folder: Path, dtype: torch.dtype) -> PhantomPipeline:
    try:
        index = json.loads((folder / INDEX).read_text())
        settings = {name: index[name] for name in ("conditioning", "flow", "max_text_tokens", "frame_rate")}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / INDEX} is not that of a Phantom export ({error})") from None
    if "PhantomPipeline" not in (index.get("_class_name") or ""):
        raise UserError(f"{folder / INDEX} is of a {index.get('_class_name')}, not of a PhantomPipeline")
    loaders = {
        "vae": lambda at: VAES[index["vae"][1]].from_pretrained(at, dtype=dtype),
        "text_encoder": lambda at: AutoModel.from_pretrained(at, dtype="auto", trust_remote_code=False),
        "tokenizer": lambda at: AutoTokenizer.from_pretrained(at, trust_remote_code=False),
        "image_encoder": lambda at: PhantomVisionTower.from_pretrained(at, dtype=dtype),
        "transformer": lambda at: PhantomTransformer3DModel.from_pretrained(at, dtype=dtype),
        "scheduler": FlowMatchEulerDiscreteScheduler.from_pretrained,
    }
    parts = {}
    for name, load in loaders.items():
        if name in OPTIONAL and not (index.get(name) or [None])[0]:
            continue
        try:
            with quiet_loading():
                parts[name] = load(folder / name)
        except UserError:
            raise
        except Exception as error:  # the libraries raise nearly anything on damaged files
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{folder / name} cannot be loaded: {reason}") from None
    return PhantomPipeline(**parts, **settings)
