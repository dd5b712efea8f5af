"""Where a frozen encoder comes from: a directory, a hub name, or a folder inside an installed Python package."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from phantom_mega.errors import UserError


def resolve_source(name: str) -> str:
    """`package:NAME/PATH` to the folder inside that installed package (which is not imported); else the name itself.

    Raises:
        UserError: no top-level package is named, it is not installed, or has no such folder.
    """
    if not name.startswith("package:"):
        return name
    package, _, inside = name.removeprefix("package:").partition("/")
    if not package.isidentifier():  # a dotted name would be found only by importing its parent
        raise UserError(f"{name}: {package!r} is no top-level package; write package:NAME/PATH")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        hint = package.replace("_", "-")
        raise UserError(f"{name}: the package {package} is not installed; try `pip install {hint}`")
    folder = Path(next(iter(spec.submodule_search_locations))) / inside
    if not folder.is_dir():
        raise UserError(f"{name}: the package {package} has no folder {inside!r}")
    return str(folder)


def explain_missing(what: str, name: str, error: Exception) -> UserError:
    """One message for an encoder that could not be loaded."""
    lines = str(error).strip().splitlines()
    reason = lines[0] if lines else type(error).__name__
    if lines and not isinstance(error, (OSError, ValueError, RuntimeError, ImportError)):
        reason = f"{type(error).__name__}: {reason}"  # alone, as in "list indices must be integers", it says nothing
    return UserError(f"{what} {name!r} could not be loaded: {reason} (give a local directory or a reachable hub name)")


def check_complete(what: str, name: str, missing: Iterable[str]) -> None:
    """Refuse an encoder whose weights are not all there: libraries leave the rest random.

    Raises:
        UserError: some are missing; names one.
    """
    missing = sorted(missing)
    if missing:
        raise UserError(
            f"{what} {name!r} has no weights for {len(missing)} of its tensors, the first is {missing[0]}; they would "
            "be random: use a folder whose config.json and weights belong together"
        )


def read_weights(path: str | Path, what: str) -> dict[str, Any]:
    """Tensors by name, of a .safetensors or PyTorch file that can run no code.

    A checkpoint that holds its weights as `model` or `state_dict`, beside other things, is read too.

    Args:
        path: of the file.
        what: the setting that names it, for messages.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    import torch
    from safetensors.torch import load_file

    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise nearly anything on what is no such file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{what}: {path} cannot be read ({reason})") from None
    for inside in ("model", "state_dict"):
        if isinstance(found, dict) and isinstance(found.get(inside), dict):
            found = found[inside]
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise UserError(f"{what}: {path} is no file of weights alone (a state_dict)")
    return found
