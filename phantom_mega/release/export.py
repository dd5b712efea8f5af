"""A training checkpoint of any layout becomes a folder that diffusers opens without this project.

    model_index.json  pipeline.py  README.md
    transformer/      config.json, sharded safetensors with their index, transformer_phantom.py
    scheduler/  vae/  text_encoder/  tokenizer/  image_encoder/     (or names of those that are only referred to)

One CPU process streams shard by shard: memory is bounded by about twice a shard (the tensors, and their bytes as they
are written) plus the largest tensor of the checkpoint, not by the model.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError
from safetensors.torch import save_file

from phantom_mega.checkpoint import folder, integrity, plain, safe
from phantom_mega.checkpoint.reader import CheckpointReader
from phantom_mega.config import RunConfig, model_arguments
from phantom_mega.config_io import load_run_config
from phantom_mega.errors import UserError
from phantom_mega.files import hidden_folder, publish_folder
from phantom_mega.generation.load import INDEX, make_scheduler, pipeline_settings
from phantom_mega.hf import PhantomTransformer3DModel
from phantom_mega.hf.naming import hf_names, split_qkv
from phantom_mega.release.bundle import bundle
from phantom_mega.release.card import Origin, write_card
from phantom_mega.release.components import check_widths, write_components

PATTERN = "diffusion_pytorch_model{suffix}.safetensors"
WEIGHTS_INDEX = "diffusion_pytorch_model.safetensors.index.json"
PIPELINE_CLASS = ["pipeline", "PhantomPipeline"]
CODE = {
    "pipeline.py": "phantom_mega.hf.pipeline_phantom",
    "transformer/transformer_phantom.py": "phantom_mega.hf.transformer_phantom",
}


@dataclass(frozen=True)
class Options:
    """What of a checkpoint is released, and how.

    Attributes:
        weights: `ema`, `raw`, or None for the average where there is one.
        dtype: of the weights; None keeps float32 (what training keeps of them).
        max_shard_size: as `5GB`.
        components: `auto` (copy what is local, name what is on the hub), `copy` or `reference`.
        license: an identifier of the hub for the card's `license` field.
        command: how the export was made, for the card.
    """

    weights: str | None = None
    dtype: torch.dtype = torch.float32
    max_shard_size: str = "5GB"
    components: str = "auto"
    license: str = "other"
    command: str = ""


def open_checkpoint(path: Path, hashes: bool = True) -> Path:
    """The checkpoint that a path names, checked.

    Raises:
        UserError: there is none, it is unsafe, or damaged.
    """
    found = folder.find_checkpoint(path)
    if found is None:
        raise UserError(f"{path} holds no checkpoint; name a run's folder or an iter_... folder")
    safe.check(found)
    problems = integrity.verify(found, hashes=hashes)
    if problems:
        raise UserError(f"{found} is damaged: {'; '.join(problems[:5])}")
    return found


def export(
    checkpoint: Path, target: Path, options: Options, progress: Callable[[int], None] = lambda nbytes: None
) -> Origin:
    """Write everything but the proof (`verify.py`) into `target`, a folder that nobody reads yet.

    Args:
        checkpoint: an `iter_...` folder (`open_checkpoint`).
        target: an empty folder.
        options: what is released.
        progress: called with bytes of weights that were written.

    Returns:
        What the weights are, as the card tells it.

    Raises:
        UserError: the average is asked for and absent, or an encoder cannot be found.
    """
    config, reader = load_run_config(checkpoint / "config.yaml"), CheckpointReader(checkpoint)
    weights = plain.choose_weights(reader, options.weights)
    write_transformer(reader, config, target / "transformer", weights, options, progress)
    for place, module in CODE.items():
        (target / place).write_text(bundle(module))
    make_scheduler().save_pretrained(target / "scheduler")
    index = {
        "_class_name": PIPELINE_CLASS,
        "_diffusers_version": diffusers.__version__,
        "transformer": ["transformer_phantom", "PhantomTransformer3DModel"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        **pipeline_settings(config),
        **write_components(config.conditioning, target, options.components),
    }
    check_widths(target, config.model)
    (target / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    origin = Origin(checkpoint, config, weights, options.dtype, options.license, options.command)
    write_card(origin, target)
    return origin


@dataclass(frozen=True)
class _Planned:
    """A tensor of the plain model that is not read yet.

    Attributes:
        core: the core parameter that holds it.
        part: which of that parameter's tensors it is.
        nbytes: of its values as released.
    """

    core: str
    part: int
    nbytes: int


def write_transformer(
    reader: CheckpointReader,
    config: RunConfig,
    target: Path,
    weights: str,
    options: Options,
    progress: Callable[[int], None],
) -> None:
    """Write the model's configuration and its weights, shard by shard, in an order that no layout changes.

    Raises:
        UserError: the checkpoint does not hold the model that its config.yaml describes, or values that `options.dtype`
            cannot hold.
    """
    check_depth(reader, config)
    target.mkdir(parents=True)
    with torch.device("meta"):
        model = PhantomTransformer3DModel(**model_arguments(config.model))
    model.save_config(target)
    planned = _plan(reader, weights, options.dtype)
    check_names(reader, planned, model)
    check_shapes(reader, planned, model, weights)
    split = split_state_dict_into_shards_factory(
        {name: planned[name] for name in sorted(planned)},
        get_storage_size=lambda one: one.nbytes,
        get_storage_id=lambda one: None,
        filename_pattern=PATTERN,
        max_shard_size=options.max_shard_size,
    )
    heads = config.model.num_attention_heads
    for name, members in split.filename_to_tensors.items():
        shard: dict[str, torch.Tensor] = {}
        for key, tensor in _read(reader, {member: planned[member] for member in members}, weights, heads):
            shard[key] = _cast(tensor, options.dtype, key)
            progress(planned[key].nbytes)
        save_file({key: shard[key] for key in sorted(shard)}, target / name, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": dict(sorted(split.tensor_to_filename.items()))}
        (target / WEIGHTS_INDEX).write_text(json.dumps(index, indent=2) + "\n")


def weights_nbytes(checkpoint: Path, dtype: torch.dtype) -> int:
    """Bytes of the weights as released."""
    return sum(one.nbytes for one in _plan(CheckpointReader(checkpoint), "raw", dtype).values())


def _plan(reader: CheckpointReader, weights: str, dtype: torch.dtype) -> dict[str, _Planned]:
    planned = {}
    for core in plain.core_weights(reader):
        entry = reader.entry(plain.source_key(reader, core, weights))
        names = hf_names(core)
        for part, name in enumerate(names):
            planned[name] = _Planned(core, part, entry.numel // len(names) * dtype.itemsize)
    return planned


def check_names(reader: CheckpointReader, planned: dict[str, _Planned], model: torch.nn.Module) -> None:
    """Refuse a checkpoint with other tensors than the model of its config.yaml."""
    wanted = model.state_dict()
    for what, names in (("lacks", wanted.keys() - planned.keys()), ("also holds", planned.keys() - wanted.keys())):
        if names:
            raise UserError(
                f"{reader.folder} {what} {len(names)} tensor(s) of the model in its config.yaml, e.g. {min(names)}"
            )


def check_depth(reader: CheckpointReader, config: RunConfig) -> None:
    """Refuse a config of another depth before a model of that depth is built: it could be of any size."""
    blocks = {key.split(".")[1] for key in plain.core_weights(reader) if key.startswith("blocks.")}
    if len(blocks) != config.model.num_layers:
        raise UserError(
            f"{reader.folder} holds {len(blocks)} blocks, but its config.yaml says model.num_layers="
            f"{config.model.num_layers}; it is of another run"
        )


def check_shapes(reader: CheckpointReader, planned: dict[str, _Planned], model: torch.nn.Module, weights: str) -> None:
    """Refuse tensors of other shapes than those of the model, or that are not numbers of floating point."""
    for name, wanted in model.state_dict().items():
        core = planned[name].core
        entry = reader.entry(plain.source_key(reader, core, weights))
        shape = [len(hf_names(core)) * len(wanted), *wanted.shape[1:]]
        if list(entry.shape) != shape or not entry.dtype.is_floating_point:
            raise UserError(
                f"{reader.folder}: {plain.source_key(reader, core, weights)} is {entry.dtype} {list(entry.shape)}, but "
                f"the model in its config.yaml has floating {shape} there"
            )


def _cast(tensor: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    cast = tensor.to(dtype).contiguous()
    bad = int((~cast.isfinite()).sum())
    if bad:
        overflow = tensor.isfinite().all()
        why = f"{dtype} cannot hold them, use bfloat16" if overflow else "the training diverged"
        raise UserError(f"{name}: {bad:,} of {cast.numel():,} values are not finite; {why}")
    return cast


def _read(
    reader: CheckpointReader, wanted: dict[str, _Planned], weights: str, heads: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of a shard; a core parameter that holds several of them is read once."""
    by_core: dict[str, list[str]] = {}
    for name, one in wanted.items():
        by_core.setdefault(one.core, []).append(name)
    for core, names in by_core.items():
        tensor = reader.read(plain.source_key(reader, core, weights))
        parts = [tensor] if len(hf_names(core)) == 1 else split_qkv(tensor, heads)
        for name in names:
            yield name, parts[wanted[name].part]


@contextlib.contextmanager
def new_folder(target: Path, overwrite: bool) -> Iterator[Path]:
    """A hidden folder beside `target` that takes its name when the block ends well, and is removed otherwise.

    Raises:
        UserError: `target` is in the way, or the disk is full.
    """
    _check_target(target, overwrite)
    try:
        temporary = hidden_folder(target)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}") from None
    try:
        yield temporary
        publish_folder(temporary, target)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own way
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{target} could not be written: {reason}; nothing was changed") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists() and not target.is_symlink():
        return
    if not overwrite:
        raise UserError(f"{target} is there already; name another folder, or replace it with --overwrite")
    index = None
    with contextlib.suppress(OSError, ValueError):
        index = json.loads((target / INDEX).read_text())
    # Another model of diffusers has this file too.
    if not isinstance(index, dict) or index.get("_class_name") != PIPELINE_CLASS:
        raise UserError(f"{target} is not an export, so --overwrite does not replace it; name another folder")
