"""Recipes to typed configuration and back: YAML, overrides in two spellings, errors that name the nearest field.

A recipe may name others under `base:`; they are merged first, in order. `stage1_256p` means the recipe of that name in
the folder of its kind (`phantom_mega/recipes/` for runs); anything with a slash or `.yaml` is a path.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import os
import textwrap
from collections import Counter
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from phantom_mega.config import ResolutionConfig, RunConfig
from phantom_mega.errors import UserError

RECIPES = Path(__file__).parent / "recipes"
_MAX_RECIPE_BYTES = 1 << 20


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"; did you mean {close[0]}?" if close else ""


def _field_docs(section: type) -> dict[str, str]:
    """Fields of a dataclass, those that it inherits among them, with the docstrings under them."""
    docs = {}
    for owner in reversed(section.__mro__[:-1]):
        source = textwrap.dedent(inspect.getsource(owner))
        for statement, doc in itertools.pairwise(ast.parse(source).body[0].body):
            if isinstance(statement, ast.AnnAssign):
                docs[statement.target.id] = doc.value.value
    return docs


class Recipes:
    """Recipes of one kind, and the configuration that they fill.

    Args:
        root: dataclass of sections, each a dataclass with a docstring under each field. A name of one section alone has
            the flag `--field-name`; one that several sections have is named with its section.
        folder: of the shipped recipes.
    """

    def __init__(self, root: type, folder: Path):
        self.root, self.folder = root, folder

    @functools.cached_property
    def fields(self) -> dict[str, str]:
        """Every field as `section.name` -> its docstring, in the order of the code (what `--help-fields` prints)."""
        return {
            f"{section.name}.{name}": doc
            for section in dataclasses.fields(self.root)
            for name, doc in _field_docs(section.default_factory).items()
        }

    def help_fields(self) -> str:
        """Every field with its flag and its meaning, for `--help-fields`."""
        flags = {path: f"    --{name.replace('_', '-')}\n" for name, path in self._by_name.items()}
        return "\n".join(f"{path}\n{flags.get(path, '')}    {doc}\n" for path, doc in self.fields.items())

    @functools.cached_property
    def _by_name(self) -> dict[str, str]:
        """Fields whose names are of one section alone."""
        counts = Counter(path.split(".")[1] for path in self.fields)
        return {path.split(".")[1]: path for path in self.fields if counts[path.split(".")[1]] == 1}

    @property
    def sections(self) -> list[str]:
        """Names of the configuration's sections."""
        return [field.name for field in dataclasses.fields(self.root)]

    def names(self) -> list[str]:
        """Names of the shipped recipes, presets in folders (`model/...`) included."""
        return sorted(str(path.relative_to(self.folder).with_suffix("")) for path in self.folder.rglob("*.yaml"))

    def load(self, recipe: str | os.PathLike, overrides: list[str] | None = None):
        """Read a recipe, apply overrides (either spelling) and return the typed configuration.

        Raises:
            UserError: no such recipe, an unknown field, or a value of the wrong type; says what, where and the nearest.
        """
        tree = self._read(self._path(str(recipe)))
        tree = OmegaConf.merge(tree, self._override_tree(self.parse_overrides(overrides or [])))
        try:
            return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(self.root), tree))
        except OmegaConfBaseException as error:
            where = getattr(error, "full_key", None) or "a field"
            raise UserError(f"{recipe}: {where}: {str(error).splitlines()[0]}") from None

    def parse_overrides(self, arguments: list[str]) -> list[str]:
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
            path, negated = self._by_name.get(name), False
            if path is None and name.startswith("no_"):
                path, negated = self._by_name.get(name[3:]), True
            if path is None:
                shared = [path for path in self.fields if path.endswith(f".{name}")]
                hint = f": several sections have it; write {shared[0]}=..." if shared else self._nearest_flag(name)
                raise UserError(f"unknown flag {word.split('=')[0]}{hint}")
            if not equals:
                if negated or self._is_bool(path):
                    takes_value = not negated and words and words[0].lower() in ("true", "false")
                    value = words.pop(0) if takes_value else str(not negated)
                elif not words:
                    raise UserError(f"{word} needs a value")
                else:
                    value = words.pop(0)
            overrides.append(f"{path}={value}")
        return overrides

    def check_keys(self, data: dict, where: str) -> None:
        """Refuse sections and fields that do not exist.

        Raises:
            UserError: names the unknown key, where it stands, and the nearest known one.
        """
        for section, values in data.items():
            if section not in self.sections:
                raise UserError(f"{where}: unknown section {section!r}{_nearest(section, self.sections)}")
            if not isinstance(values, dict):
                raise UserError(f"{where}: section {section!r} must be a mapping of fields")
            for name, value in values.items():
                if f"{section}.{name}" not in self.fields:
                    raise UserError(f"{where}: unknown field {section}.{name}{self._suggest(name, section)}")
                if name == "resolutions":
                    known = [field.name for field in dataclasses.fields(ResolutionConfig)]
                    for resolution, entry in (value or {}).items():
                        for key in entry or {}:
                            if key not in known:
                                raise UserError(f"{where}: unknown field {key!r} of {resolution}{_nearest(key, known)}")

    def _path(self, name: str, relative_to: Path | None = None) -> Path:
        """The file that a recipe name or path stands for.

        Raises:
            UserError: there is no such recipe.
        """
        if (self.folder / f"{name}.yaml").is_file():
            return self.folder / f"{name}.yaml"
        for candidate in (Path(name), (relative_to or Path()) / name):
            if candidate.is_file():
                return candidate
        known = self.names()
        raise UserError(
            f"there is no recipe {name!r}{_nearest(name, known)} (shipped: {', '.join(known)}; or give a path)"
        )

    def _read(self, path: Path, seen: tuple[Path, ...] = ()) -> DictConfig:
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
            raise UserError(f"recipe {path} must hold sections ({', '.join(self.sections)}), not {type(data).__name__}")
        bases = data.pop("base", [])
        merged = OmegaConf.create()
        for base in [bases] if isinstance(bases, str) else bases:
            merged = OmegaConf.merge(merged, self._read(self._path(base, path.parent), (*seen, path)))
        self.check_keys(data, str(path))
        return OmegaConf.merge(merged, data)

    def _suggest(self, name: str, section: str = "") -> str:
        own = _nearest(name, [path.split(".")[1] for path in self.fields if path.startswith(f"{section}.")])
        if own:
            return own.replace("did you mean ", f"did you mean {section}.")
        close = _nearest(name, list(self._by_name))
        return close.replace(close[15:-1], self._by_name[close[15:-1]]) if close else ""

    def _nearest_flag(self, name: str) -> str:
        close = _nearest(name, list(self._by_name))
        return close.replace("did you mean ", "did you mean --").replace("_", "-") if close else ""

    def _is_bool(self, path: str) -> bool:
        section, name = path.split(".")
        return isinstance(getattr(getattr(self.root(), section), name), bool)

    def _override_tree(self, overrides: list[str]) -> DictConfig:
        tree = OmegaConf.create()
        for override in overrides:
            path, _, value = override.partition("=")
            parts = path.split(".")
            if len(parts) < 2:
                where = self._by_name.get(path)
                hint = f"; did you mean {where}?" if where else self._suggest(path)
                raise UserError(f"override {override!r} must name section.field{hint}")
            try:
                parsed = yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise UserError(f"override {override!r}: the value is not valid YAML: {error}") from None
            nested = {parts[-1]: parsed}
            for part in reversed(parts[:-1]):
                nested = {part: nested}
            self.check_keys(nested, f"override {override!r}")
            tree = OmegaConf.merge(tree, nested)
        return tree


RUN = Recipes(RunConfig, RECIPES)


def load_run_config(recipe: str | os.PathLike, overrides: list[str] | None = None) -> RunConfig:
    """The configuration of a run; see `Recipes.load`.

    Raises:
        UserError: no such recipe, an unknown field, or a value of the wrong type; names what, where and the nearest.
    """
    return RUN.load(recipe, overrides)


def to_yaml(config) -> str:
    """The resolved configuration as YAML that `Recipes.load` reads back to an equal object."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))
