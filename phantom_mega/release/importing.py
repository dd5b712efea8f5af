"""A release, or an open base model, becomes a training checkpoint (the model alone) that any layout can start from.

Tensor by tensor: memory is bounded by the largest tensor (about three times), not by the model. The checkpoint is
written under a hidden name, hashed, and renamed when whole.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from phantom_mega.checkpoint import folder, integrity
from phantom_mega.checkpoint.compare import difference
from phantom_mega.checkpoint.reader import CheckpointReader
from phantom_mega.checkpoint.rewrite import CheckpointWriter, new_checkpoint
from phantom_mega.checkpoint.sharding import ModelParallelLayout
from phantom_mega.config import ConditioningConfig, DataConfig, FlowConfig, ModelConfig, RunConfig
from phantom_mega.config_io import load_run_config, to_yaml
from phantom_mega.errors import UserError
from phantom_mega.hf.naming import fuse_qkv, hf_names
from phantom_mega.parallel_layout import check_layout, layers_per_chunk
from phantom_mega.release.base_models.common import BaseModel, Source
from phantom_mega.release.base_models.plan import Plan, Planner
from phantom_mega.release.base_models.table import TABLE, table
from phantom_mega.release.base_models.weights import Weights, open_weights, read_json

CLASS = "PhantomTransformer3DModel"
# Megatron keeps an item of its own beside each of its linears, and asks for it when it loads.
_LINEARS = (".linear_qkv.weight", ".linear_proj.weight", ".linear_fc1.weight", ".linear_fc2.weight")
_SHARD = "shard_0_1"
_SIZES = (
    "num_layers", "hidden_size", "num_attention_heads", "ffn_hidden_size", "latent_channels", "text_dim", "clip_dim",
    "timestep_dim",
)  # fmt: skip


# -- a release


def open_export(path: Path) -> tuple[Source, dict]:
    """A release's transformer, and its pipeline's settings (empty without a pipeline).

    Args:
        path: the release's folder, or its `transformer/`.

    Raises:
        UserError: it is neither, or its files are damaged.
    """
    path = Path(path)
    transformer = path / "transformer" if (path / "transformer" / "config.json").is_file() else path
    if not (transformer / "config.json").is_file():
        raise UserError(f"{path} is no release: it has no config.json and no transformer/config.json")
    config = read_json(transformer / "config.json")
    if config.get("_class_name") != CLASS:
        raise UserError(
            f"{transformer / 'config.json'} is of {config.get('_class_name')!r}, not {CLASS}; a base model needs --from"
        )
    index = transformer.parent / "model_index.json"
    return Source(open_weights(transformer), config), read_json(index) if index.is_file() else {}


def export_model(source: Source) -> ModelConfig:
    """The model that a release's `config.json` describes.

    Raises:
        UserError: it has a field that is not known here, a wrong type, or other blocks than the weights.
    """
    where = f"{source.weights.path}/config.json"
    given = {name: value for name, value in source.config.items() if not name.startswith("_")}
    known = {field.name for field in dataclasses.fields(ModelConfig)} - {"patch_size"}
    if unknown := sorted(given.keys() - known):
        raise UserError(f"{where} has {unknown[0]!r}, which no model of this version has; a newer one may read it")
    model = _typed(ModelConfig, given, where)
    blocks = len({name.split(".")[1] for name in source.weights.shapes if name.startswith("blocks.")})
    if blocks != model.num_layers:
        raise UserError(f"{where} says num_layers {model.num_layers}, but the weights have {blocks} blocks")
    return model


def export_config(model: ModelConfig, pipeline: dict, recipe: str | None, overrides: list[str]) -> RunConfig:
    """Configuration of a run that continues a release.

    Args:
        model: the release's.
        pipeline: what its `model_index.json` says; the encoders' names are taken from it.
        recipe: of the run; its model must be the release's. None takes the defaults.
        overrides: of the recipe, as on the command line of `launchers/train.py`.

    Raises:
        UserError: the recipe describes another model; names every field that differs.
    """
    if recipe is not None:
        config = load_run_config(recipe, overrides)
        check_fields(config.model, vars(model), f"recipe {recipe}", "the release")
        return config
    if overrides:
        raise UserError(f"{overrides[0]!r} changes a recipe; name one with --config (the model is the release's own)")
    run, where = RunConfig(model=model), "model_index.json"
    for section, kind in (("conditioning", ConditioningConfig), ("flow", FlowConfig)):
        given, known = pipeline.get(section), {field.name for field in dataclasses.fields(kind)}
        if isinstance(given, dict):
            setattr(run, section, _typed(kind, {k: v for k, v in given.items() if k in known}, where))
    data = {name: pipeline[name] for name in ("max_text_tokens", "frame_rate") if pipeline.get(name) is not None}
    run.data = _typed(DataConfig, data, where)
    return run


def _typed(kind: type, values: dict, where: str):
    """A configuration section of values that somebody else wrote."""
    text = {name: value for name, value in values.items() if "${" in str(value)}
    if text:
        raise UserError(f"{where}: {next(iter(text))} is {next(iter(text.values()))!r}; write the value out")
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), OmegaConf.create(values)))
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{where}: {str(error).splitlines()[0]}") from None


def check_fields(model: ModelConfig, wanted: dict, where: str, what: str) -> None:
    """Compare a model's fields with those of a source.

    Raises:
        UserError: names every field that differs, and the overrides that mend it.
    """
    differing = {name: value for name, value in wanted.items() if getattr(model, name) != value}
    if differing:
        listed = "; ".join(
            f"model.{name}: {getattr(model, name)!r}, not {value!r}" for name, value in differing.items()
        )
        mend = " ".join(f"model.{name}={_word(value)}" for name, value in differing.items())
        raise UserError(f"{where} describes another model than {what}: {listed}. Leave --config out, or add {mend}")


def _word(value: object) -> str:
    return str(value).replace(" ", "")


def export_plan(source: Source, run: RunConfig) -> Plan:
    """Every tensor of a release, as it is.

    Raises:
        UserError: a tensor is missing, or there is one that the model does not have.
    """
    planner = Planner("a release of this project", source.weights, run.model, run.train.seed)
    heads = run.model.num_attention_heads
    for target in planner.plan.shapes:
        names = hf_names(target)
        if len(names) == 1:
            planner.copy(target, names[0])
        else:
            fuse = lambda read, names=names: fuse_qkv(map(read, names), heads)  # noqa: E731
            planner.rule(target, names, "rows by head", fuse)
    return planner.finish([])


# -- a base model


def base_config(base: BaseModel, source: Source, recipe: str | None, overrides: list[str]) -> RunConfig:
    """Configuration of a run that starts from a base model: the recipe, with what the source fixes.

    Args:
        base: the kind of base model.
        source: opened.
        recipe: must fit the source; None takes the preset of the kind, with the source's sizes.
        overrides: as on the command line of `launchers/train.py`.

    Raises:
        UserError: the recipe or an override contradicts the source.
    """
    fixed = base.fields(source)
    sizes = [] if recipe else [f"model.{name}={_word(value)}" for name, value in fixed.items()]
    config = load_run_config(recipe or base.recipe, [*sizes, *overrides])
    check_fields(config.model, fixed, f"recipe {recipe}" if recipe else "the command line", base.title)
    return config


# -- the checkpoint


def with_layout(run: RunConfig, tensor: int, pipeline: int) -> RunConfig:
    """The configuration with another model-parallel layout; settings that belong to the old one are reset.

    Raises:
        UserError: the model cannot be cut so.
    """
    for name in _SIZES:
        if not 1 <= getattr(run.model, name) < 1 << 31:
            wrong = "must be at least 1" if getattr(run.model, name) < 1 else "is larger than any model's"
            raise UserError(f"model.{name}={getattr(run.model, name)} {wrong}")
    parallel = dataclasses.replace(
        run.parallel,
        tensor_model_parallel_size=tensor,
        context_parallel_size=1,  # it shares no weights, so no file depends on it
        pipeline_model_parallel_size=pipeline,
        virtual_pipeline_model_parallel_size=None,
        sequence_parallel=run.parallel.sequence_parallel and tensor > 1,
        recompute_num_layers=None,
        cpu_offloading_num_layers=0,
    )
    check_layout(run.model, parallel)
    layers = layers_per_chunk(run.model, parallel)
    parallel.cpu_offloading_num_layers = min(run.parallel.cpu_offloading_num_layers, layers)
    return dataclasses.replace(run, parallel=parallel)


def write(
    plan: Plan,
    weights: Weights,
    target: Path,
    run: RunConfig,
    *,
    dtype: torch.dtype | None = None,
    verify: bool = False,
    overwrite: bool = False,
    progress: Callable[[str, int], None] = lambda what, numel: None,
) -> list[str]:
    """Write a checkpoint, whole or not at all.

    Args:
        plan: what becomes what.
        weights: the source.
        target: the checkpoint's folder, of any name.
        run: its configuration, with the layout (`with_layout`).
        dtype: number format of all tensors; None keeps that of each.
        verify: read the checkpoint back and compare it with the source, tensor by tensor, before it gets its name.
        overwrite: replace a checkpoint that is there.
        progress: called with `write` or `verify` and the number of values that were just handled.

    Returns:
        Figures of what was approximated.

    Raises:
        UserError: the source is damaged, the target is in the way, the disk is full, or verification failed.
    """
    parallel = run.parallel
    layout = ModelParallelLayout(
        run.model.num_layers, parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    )
    with new_checkpoint(target, overwrite) as temporary:
        writer = CheckpointWriter(temporary, layout)
        try:
            for name in plan.rules:
                tensor = plan.build(name, weights, dtype)
                writer.tensor(name, tensor)
                progress("write", tensor.numel())
                if name.endswith(_LINEARS):
                    writer.raw(f"{name.removesuffix('.weight')}._extra_state/{_SHARD}", _saved([None]))
            writer.raw(f"common_state/{_SHARD}", _saved([{}]))
            known = writer.finish()
        finally:
            writer.abandon()
        measured = plan.measure(weights.read)
        _describe(temporary, run, table(plan, weights, measured))
        integrity.write_manifest(temporary, known)
        if verify:
            _verify(plan, weights, temporary, dtype, progress)
    return measured


def _saved(item: list) -> bytes:
    buffer = io.BytesIO()
    torch.save(item, buffer)
    return buffer.getvalue()


def _describe(target: Path, run: RunConfig, text: str) -> None:
    (target / "config.yaml").write_text(to_yaml(run))
    (target / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1}))
    (target / folder.STATE).write_text(
        json.dumps({"iteration": 0, "consumed_samples": 0, "content": "model"}, indent=1)
    )
    (target / TABLE).write_text(text)


def _verify(plan: Plan, weights: Weights, target: Path, dtype: torch.dtype | None, progress: Callable) -> None:
    written = CheckpointReader(target)
    if set(written.tensors) != set(plan.rules):
        raise UserError("verification failed: other tensors were written than planned; the checkpoint is removed")
    for name in plan.rules:
        found = difference(plan.build(name, weights, dtype), written.read(name))
        if found:
            raise UserError(f"verification failed: {name}: {found}; the checkpoint is removed, try another disk")
        progress("verify", written.tensors[name].numel)
