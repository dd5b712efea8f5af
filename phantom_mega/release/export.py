"""A training checkpoint as a folder that diffusers opens without this project.

    OUTPUT/model_index.json, pipeline.py, README.md, scheduler/
           transformer/            config.json, transformer_phantom.py, safetensors in shards
           vae/, text_encoder/, tokenizer/, image_encoder/       those that are copied (`components`)
Weights are streamed: memory is bounded by one shard and the largest tensor, not by the model.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from huggingface_hub import StateDictSplit, split_torch_state_dict_into_shards
from safetensors.torch import save_file

from phantom_mega.checkpoint import integrity, plain, safe
from phantom_mega.checkpoint.folder import STATE, find_checkpoint, sync
from phantom_mega.checkpoint.reader import CheckpointReader
from phantom_mega.config import RunConfig
from phantom_mega.config_io import load_run_config
from phantom_mega.errors import UserError
from phantom_mega.generation.load import INDEX, make_scheduler, model_arguments, pipeline_settings
from phantom_mega.hf import PhantomTransformer3DModel
from phantom_mega.hf.naming import core_name, hf_names, split_qkv
from phantom_mega.release.bundle import bundle
from phantom_mega.release.components import write_components

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WEIGHTS_NAME = "diffusion_pytorch_model{suffix}.safetensors"
PIPELINE_CLASS = ["pipeline", "PhantomPipeline"]
TRANSFORMER_CLASS = ["transformer_phantom", "PhantomTransformer3DModel"]
Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class Options:
    """What to export.

    Attributes:
        weights: `ema`, `raw`, or None: the average where there is one.
        dtype: a name in `DTYPES`, or None: bfloat16 for a run in bf16, else float32.
        max_shard_size: of a file of weights, as diffusers writes it (`5GB`).
        components: `copy`, `reference`, or None: see `components.write_components`.
        hashes: compare the checkpoint's files with their digests, else their sizes alone.
        overwrite: replace an export that is there.
    """

    weights: str | None = None
    dtype: str | None = None
    max_shard_size: str = "5GB"
    components: str | None = None
    hashes: bool = True
    overwrite: bool = False


@dataclass(frozen=True)
class Source:
    """An opened checkpoint and what of it is taken.

    Attributes:
        reader: of the `iter_...` folder.
        config: of the run.
        state: `trainer_state.json`.
        weights: `ema` or `raw`.
        dtype: number format of the export.
        model: the plain model on the meta device.
        split: which tensor goes into which file.
    """

    reader: CheckpointReader
    config: RunConfig
    state: dict
    weights: str
    dtype: torch.dtype
    model: PhantomTransformer3DModel
    split: StateDictSplit

    @property
    def nbytes(self) -> int:
        """Bytes of the exported transformer's tensors."""
        return self.split.metadata["total_size"]


def open_source(path: Path, options: Options) -> Source:
    """Open a checkpoint and check that it can be exported, before anything is written.

    Args:
        path: a run's folder or an `iter_...` folder.
        options: what is asked for.

    Raises:
        UserError: there is no checkpoint, it is damaged or unsafe, or does not hold the model of its `config.yaml`.
    """
    folder = find_checkpoint(path) if Path(path).is_dir() else None
    if folder is None:
        raise UserError(f"{path} holds no checkpoint; name a run's folder or an iter_... folder")
    safe.check(folder)
    problems = integrity.verify(folder, hashes=options.hashes)
    if problems:
        raise UserError(f"{folder} is damaged: {'; '.join(problems[:5])}")
    config, reader = load_run_config(folder / "config.yaml"), CheckpointReader(folder)
    if options.dtype not in (None, *DTYPES):
        raise UserError(f"dtype={options.dtype!r} is unknown; use one of {', '.join(DTYPES)}")
    dtype = DTYPES[options.dtype or ("bfloat16" if config.precision.bf16 else "float32")]
    weights = plain.choose_weights(reader, options.weights)
    model = _meta_model(reader, config)
    tensors = {name: tensor.to(dtype) for name, tensor in _in_core_order(model.state_dict())}
    _check_tensors(reader, tensors, weights)
    try:
        split = split_torch_state_dict_into_shards(
            tensors, filename_pattern=WEIGHTS_NAME, max_shard_size=options.max_shard_size
        )
    except ValueError as error:
        raise UserError(f"max_shard_size={options.max_shard_size!r}: {error} (as 5GB or 500MB)") from None
    return Source(reader, config, read_state(folder), weights, dtype, model, split)


def read_state(folder: Path) -> dict:
    """`trainer_state.json` of a checkpoint.

    Raises:
        UserError: it is not a mapping with an iteration.
    """
    try:
        state = json.loads((folder / STATE).read_text())
        return {**state, "iteration": int(state["iteration"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / STATE} is damaged ({type(error).__name__}: {error})") from None


def _meta_model(reader: CheckpointReader, config: RunConfig) -> PhantomTransformer3DModel:
    """The plain model without memory; refuses a config of another depth first, which could be of any size."""
    blocks = {name.split(".")[1] for name in reader.tensors if name.startswith("blocks.")}
    if len(blocks) != config.model.num_layers:
        raise UserError(
            f"{reader.folder} holds {len(blocks)} blocks, but its config.yaml says model.num_layers="
            f"{config.model.num_layers}; it is of another run"
        )
    with torch.device("meta"):
        return PhantomTransformer3DModel(**model_arguments(config))


def _in_core_order(state: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """The model's order, but what is one tensor in a checkpoint stands together, so that it is read once."""
    seen = set()
    for name in state:
        core = core_name(name)
        if core not in seen:
            seen.add(core)
            yield from ((plain_name, state[plain_name]) for plain_name in hf_names(core))


def _check_tensors(reader: CheckpointReader, tensors: dict[str, torch.Tensor], weights: str) -> None:
    """Refuse a checkpoint that does not hold just the tensors of the model, each of its shape."""
    expected: dict[str, list[int]] = {}
    for name, tensor in tensors.items():
        core = core_name(name)
        if core in expected:
            expected[core][0] += len(tensor)
        else:
            expected[core] = list(tensor.shape)
    where = f"{reader.folder} does not hold the model that its config.yaml describes"
    more = sorted(set(plain.core_weights(reader)) - set(expected))
    if more:
        raise UserError(f"{where}: it has {len(more)} more tensors, the first is {more[0]}")
    for core, shape in expected.items():
        key = plain.source_key(reader, core, weights)
        if core not in reader.tensors or key not in reader.tensors:
            raise UserError(f"{where}: it has no {key if core in reader.tensors else core}")
        entry = reader.tensors[key]
        if list(entry.shape) != shape or not entry.dtype.is_floating_point:
            raise UserError(f"{where}: {key} is {entry.dtype} {list(entry.shape)}, not floating {shape}")


def write_transformer(source: Source, folder: Path, progress: Progress) -> None:
    """Weights, configuration and code of the transformer.

    Args:
        source: the checkpoint.
        folder: the new component's.
        progress: called with `write` and the bytes that were just written.

    Raises:
        UserError: a tensor is damaged, or holds values that are not finite in the chosen number format.
    """
    folder.mkdir()
    source.model.save_config(folder)
    (folder / f"{TRANSFORMER_CLASS[0]}.py").write_text(
        bundle("phantom_mega.hf.transformer_phantom", "The transformer that config.json beside it describes.")
    )
    heads = source.config.model.num_attention_heads
    for file, names in source.split.filename_to_tensors.items():
        shard: dict[str, torch.Tensor] = {}
        for core in dict.fromkeys(map(core_name, names)):
            key = plain.source_key(source.reader, core, source.weights)
            parts = _parts(source.reader.read(key), core, heads)
            for name, part in zip(hf_names(core), parts, strict=True):
                if name in names:  # a shard may end between to_q and to_k
                    shard[name] = _cast(part, source.dtype, key)
                    progress("write", shard[name].nbytes)
        save_file(shard, folder / file, metadata={"format": "pt"})
    if source.split.is_sharded:
        index = {"metadata": source.split.metadata, "weight_map": source.split.tensor_to_filename}
        name = WEIGHTS_NAME.format(suffix="") + ".index.json"
        (folder / name).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _parts(tensor: torch.Tensor, core: str, heads: int) -> list[torch.Tensor]:
    return [tensor] if len(hf_names(core)) == 1 else split_qkv(tensor, heads)


def _cast(tensor: torch.Tensor, dtype: torch.dtype, key: str) -> torch.Tensor:
    cast = tensor.to(dtype)
    bad = int((~cast.isfinite()).sum())
    if bad:
        lost = int(tensor.isfinite().sum()) - (cast.numel() - bad)
        hint = f"; {lost} of them are too large for {dtype}, use bfloat16" if lost else "; the training diverged"
        raise UserError(f"{key}: {bad:,} of {cast.numel():,} values are not finite{hint}")
    return cast


def write_export(
    source: Source,
    target: Path,
    options: Options,
    finish: Callable[[Path, dict], None],
    progress: Progress = lambda what, nbytes: None,
) -> Path:
    """Write the whole folder under a hidden name, let `finish` check and describe it, then give it its name.

    Args:
        source: from `open_source`.
        target: the new folder.
        options: the same as for `source`.
        finish: called with the hidden folder and its `model_index.json`; what it raises means that nothing is kept.
        progress: as for `write_transformer`.

    Returns:
        `target`.

    Raises:
        UserError: the target is in the way, the disk is full, a component cannot be copied, or `finish` refuses.
    """
    _check_target(source, target, options.overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f".{target.name}.writing-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.writing-", dir=target.parent))
    try:
        write_transformer(source, temporary / "transformer", progress)
        make_scheduler().save_pretrained(temporary / "scheduler")
        pipeline = bundle("phantom_mega.hf.pipeline_phantom", "The pipeline that model_index.json beside it describes.")
        (temporary / f"{PIPELINE_CLASS[0]}.py").write_text(pipeline)
        components, conditioning = write_components(temporary, source.config, options.components)
        index = {
            "_class_name": PIPELINE_CLASS,
            "_diffusers_version": diffusers.__version__,
            "transformer": TRANSFORMER_CLASS,
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            **components,
            **pipeline_settings(source.config),
            "conditioning": conditioning,
        }
        (temporary / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        finish(temporary, index)
        _publish(temporary, target)
    except OSError as error:
        raise UserError(f"{target} could not be written: {error.strerror or error}; nothing was changed") from None
    except Exception as error:
        # safetensors reports a full disk as an error of its own.
        if type(error).__name__ == "SafetensorError":
            raise UserError(f"{target} could not be written: {error}; nothing was changed") from None
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _check_target(source: Source, target: Path, overwrite: bool) -> None:
    if not target.exists() and not target.is_symlink():
        return
    if source.reader.folder.resolve().is_relative_to(target.resolve()):
        raise UserError(f"{target} holds the checkpoint; name another folder")
    if not overwrite:
        raise UserError(f"{target} is there already; name another folder, or replace it with --overwrite")
    index = {}
    with contextlib.suppress(OSError, ValueError):
        index = json.loads((target / INDEX).read_text())
    if not isinstance(index, dict) or index.get("_class_name") != PIPELINE_CLASS:
        raise UserError(f"{target} is not an export, so --overwrite does not replace it; name another folder")


def _publish(temporary: Path, target: Path) -> None:
    """Put the new export in its place; an older one goes only when the new one is there."""
    mask = os.umask(0)
    os.umask(mask)
    for path in (*temporary.rglob("*"), temporary):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)  # safetensors makes files that only their owner reads
        sync(path)
    old = target.with_name(f".{target.name}.writing-replaced")
    if target.exists():
        os.rename(target, old)
    os.rename(temporary, target)
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)
