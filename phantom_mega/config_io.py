"""Recipes to typed configuration and back: YAML, overrides in two spellings, errors that name the nearest field.

A recipe may name others under `base:`; they are merged first, in order. `stage1_256p` means the recipe of that name in
`phantom_mega/recipes/`; anything with a slash or `.yaml` is a path.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import os
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from phantom_mega import config as config_module
from phantom_mega.config import ResolutionConfig, RunConfig
from phantom_mega.errors import UserError

RECIPES = Path(__file__).parent / "recipes"
_MAX_RECIPE_BYTES = 1 << 20


@functools.cache
def fields() -> dict[str, str]:
    """Every field as `section.name` -> its docstring, in the order of `config.py` (what `--help` prints)."""
    classes = {node.name: node for node in ast.parse(inspect.getsource(config_module)).body if hasattr(node, "bases")}
    docs = {}
    for section in dataclasses.fields(RunConfig):
        body = classes[section.default_factory.__name__].body
        for statement, doc in itertools.pairwise(body):
            if isinstance(statement, ast.AnnAssign):
                docs[f"{section.name}.{statement.target.id}"] = doc.value.value
    return docs


@functools.cache
def _by_name() -> dict[str, str]:
    return {path.split(".")[1]: path for path in fields()}


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"; did you mean {close[0]}?" if close else ""


def recipe_names() -> list[str]:
    """Names of the shipped recipes, `model/...` presets included."""
    return sorted(str(path.relative_to(RECIPES).with_suffix("")) for path in RECIPES.rglob("*.yaml"))


def _recipe_path(name: str, relative_to: Path | None = None) -> Path:
    """The file that a recipe name or path stands for.

    Raises:
        UserError: there is no such recipe.
    """
    if (RECIPES / f"{name}.yaml").is_file():
        return RECIPES / f"{name}.yaml"
    for candidate in (Path(name), (relative_to or Path()) / name):
        if candidate.is_file():
            return candidate
    known = recipe_names()
    raise UserError(f"there is no recipe {name!r}{_nearest(name, known)} (shipped: {', '.join(known)}; or give a path)")


def _read_recipe(path: Path, seen: tuple[Path, ...] = ()) -> DictConfig:
    if path in seen:
        raise UserError(f"recipe {path} names itself under `base`")
    try:
        if path.stat().st_size > _MAX_RECIPE_BYTES:
            raise UserError(f"recipe {path} is larger than {_MAX_RECIPE_BYTES} bytes; it is no recipe")
        text = path.read_text()
        # A few lines of aliases of aliases stand for gigabytes.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise UserError(f"recipe {path} uses YAML aliases (*name); write the value out, or share it by `base`")
        if "${" in text:  # OmegaConf would put environment variables into the configuration that is saved
            raise UserError(f"recipe {path} uses ${{...}}; write the value out")
        data = yaml.safe_load(text) or {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"recipe {path} is not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"recipe {path} must hold sections ({', '.join(sections())}), not {type(data).__name__}")
    bases = data.pop("base", [])
    merged = OmegaConf.create()
    for base in [bases] if isinstance(bases, str) else bases:
        merged = OmegaConf.merge(merged, _read_recipe(_recipe_path(base, path.parent), (*seen, path)))
    check_keys(data, str(path))
    return OmegaConf.merge(merged, data)


def sections() -> list[str]:
    """Names of the configuration's sections."""
    return [field.name for field in dataclasses.fields(RunConfig)]


def check_keys(data: dict, where: str) -> None:
    """Refuse sections and fields that do not exist.

    Raises:
        UserError: names the unknown key, where it stands, and the nearest known one.
    """
    for section, values in data.items():
        if section not in sections():
            raise UserError(f"{where}: unknown section {section!r}{_nearest(section, sections())}")
        if not isinstance(values, dict):
            raise UserError(f"{where}: section {section!r} must be a mapping of fields")
        for name, value in values.items():
            if f"{section}.{name}" not in fields():
                raise UserError(f"{where}: unknown field {section}.{name}{_suggest(name)}")
            if name == "resolutions":
                known = [field.name for field in dataclasses.fields(ResolutionConfig)]
                for resolution, entry in (value or {}).items():
                    for key in entry or {}:
                        if key not in known:
                            raise UserError(f"{where}: unknown field {key!r} of {resolution}{_nearest(key, known)}")


def _suggest(name: str) -> str:
    close = _nearest(name, list(_by_name()))
    return close.replace(close[15:-1], _by_name()[close[15:-1]]) if close else ""


def parse_overrides(arguments: list[str]) -> list[str]:
    """Command-line words to `section.field=value`.

    Accepts `train.global_batch_size=64`, `--global-batch-size 64`, `--global-batch-size=64`, and for booleans
    `--sequence-parallel` and `--no-sequence-parallel`.

    Raises:
        UserError: an unknown field, or a flag without its value.
    """
    overrides, words = [], list(arguments)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            if "=" not in word:
                raise UserError(f"cannot read {word!r}; write section.field=value or --field-name value")
            overrides.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        path, negated = _by_name().get(name), False
        if path is None and name.startswith("no_"):
            path, negated = _by_name().get(name[3:]), True
        if path is None:
            raise UserError(f"unknown flag {word.split('=')[0]}{_nearest_flag(name)}")
        if not equals:
            if negated or _is_bool(path):
                takes_value = not negated and words and words[0].lower() in ("true", "false")
                value = words.pop(0) if takes_value else str(not negated)
            elif not words:
                raise UserError(f"{word} needs a value")
            else:
                value = words.pop(0)
        overrides.append(f"{path}={value}")
    return overrides


def _nearest_flag(name: str) -> str:
    close = _nearest(name, list(_by_name()))
    return close.replace("did you mean ", "did you mean --").replace("_", "-") if close else ""


def _is_bool(path: str) -> bool:
    section, name = path.split(".")
    return isinstance(getattr(getattr(RunConfig(), section), name), bool)


def _override_tree(overrides: list[str]) -> DictConfig:
    tree = OmegaConf.create()
    for override in overrides:
        path, _, value = override.partition("=")
        parts = path.split(".")
        if len(parts) < 2:
            where = _by_name().get(path)
            hint = f"; did you mean {where}?" if where else _suggest(path)
            raise UserError(f"override {override!r} must name section.field{hint}")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"override {override!r}: the value is not valid YAML: {error}") from None
        nested = {parts[-1]: parsed}
        for part in reversed(parts[:-1]):
            nested = {part: nested}
        check_keys(nested, f"override {override!r}")
        tree = OmegaConf.merge(tree, nested)
    return tree


def load_run_config(recipe: str | os.PathLike, overrides: list[str] | None = None) -> RunConfig:
    """Read a recipe, apply overrides (either spelling) and return the typed configuration.

    Raises:
        UserError: no such recipe, an unknown field, or a value of the wrong type; names what, where and the nearest.
    """
    tree = _read_recipe(_recipe_path(str(recipe)))
    tree = OmegaConf.merge(tree, _override_tree(parse_overrides(overrides or [])))
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), tree))
    except OmegaConfBaseException as error:
        where = getattr(error, "full_key", None) or "a field"
        raise UserError(f"{recipe}: {where}: {str(error).splitlines()[0]}") from None


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration as YAML that `load_run_config` reads back to an equal object."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))
