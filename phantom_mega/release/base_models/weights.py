"""Open somebody else's weights: safetensors (one file or shards with an index), or torch's zip files, as plain data.

Nothing is unpickled but tensors, and one tensor is read at a time.
"""

from __future__ import annotations

import difflib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from phantom_mega.errors import UserError

TORCH_FILES = (".pth", ".pt", ".bin", ".ckpt")
_INDEX = ".safetensors.index.json"
# A configuration or an index is small; what claims to be one and is not is never read whole.
_MAX_JSON_BYTES = 64 << 20


class Weights(ABC):
    """Named tensors of a file or folder.

    Attributes:
        path: what the user named.
        shapes: shape by name, in the order of the files.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]

    @abstractmethod
    def load(self, name: str) -> torch.Tensor:
        """One tensor of `shapes`."""

    def read(self, name: str) -> torch.Tensor:
        """One tensor, on the CPU.

        Raises:
            UserError: there is none of that name, it is no floating tensor, or the file is damaged.
        """
        self.shape(name)
        try:
            tensor = self.load(name)
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            raise UserError(f"{self.path}: {name} cannot be read ({_first_line(error)})") from None
        if not tensor.dtype.is_floating_point or tensor.dtype.itemsize < 2:
            raise UserError(
                f"{self.path}: {name} is {_name(tensor.dtype)}; use weights in float32, bfloat16 or float16"
            )
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor.

        Raises:
            UserError: there is none of that name; names the nearest.
        """
        if name not in self.shapes:
            near = difflib.get_close_matches(name, self.shapes, n=1)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            raise UserError(f"{self.path} has no tensor {name!r}{hint}; it is of another model, or not whole")
        return self.shapes[name]


class SafetensorsWeights(Weights):
    """One safetensors file, or several.

    Args:
        path: what the user named.
        files: the files.

    Raises:
        UserError: a file is damaged, or two hold a tensor of one name.
    """

    def __init__(self, path: Path, files: list[Path]):
        self.path, self.shapes, self._files = path, {}, {}
        for file in files:
            for name, shape in _safetensors_shapes(file):
                if name in self.shapes:
                    raise UserError(
                        f"{name} is in {self._files[name].name} and in {file.name}; remove one of the files"
                    )
                self.shapes[name], self._files[name] = shape, file

    def load(self, name: str) -> torch.Tensor:
        """Map the file for this tensor alone."""
        with safe_open(self._files[name], framework="pt") as file:
            return file.get_tensor(name)


def _safetensors_shapes(file: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                yield name, tuple(opened.get_slice(name).get_shape())
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} is not a whole safetensors file ({_first_line(error)}); fetch it again") from None


class TorchWeights(Weights):
    """A state dict that torch.save wrote, mapped into memory; loaded with torch's unpickler for plain data.

    Args:
        path: the file.

    Raises:
        UserError: it is damaged, asks for more than tensors, or is of torch's format before 1.6.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # damaged bytes can fail in any way
            raise UserError(f"{path} cannot be loaded as plain tensors ({_reason(error)})") from None
        while isinstance(state, dict) and len(state) == 1 and isinstance(next(iter(state.values())), dict):
            state = next(iter(state.values()))  # {"state_dict": {...}}
        if not isinstance(state, dict) or not state:
            raise UserError(f"{path} holds {type(state).__name__}, not a state dict")
        for name, tensor in state.items():
            if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
                raise UserError(f"{path}: {str(name)[:80]!r} is {type(tensor).__name__}, not a tensor")
        self._state = state
        self.shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}

    def load(self, name: str) -> torch.Tensor:
        """A tensor that lies in the mapped file."""
        return self._state[name]


def _reason(error: Exception) -> str:
    text = str(error)
    if "mmap" in text or "old format" in text:
        return "it is not of torch's zip format: load and save it again with torch >= 1.6"
    asked = [line for line in text.splitlines() if "Unsupported" in line or "GLOBAL" in line]
    return f"{type(error).__name__}: {asked[0].strip() if asked else _first_line(error)}"


def open_weights(path: Path) -> Weights:
    """Open weights.

    Args:
        path: a safetensors file; a `.pth` file; a folder with safetensors, sharded (with its index) or one file.

    Raises:
        UserError: there are none, or they are damaged.
    """
    path = Path(path)
    if path.is_dir():
        return SafetensorsWeights(path, _files_of(path))
    if not path.is_file():
        raise UserError(f"{path} is no file or folder")
    if path.suffix in TORCH_FILES:
        return TorchWeights(path)
    if path.suffix != ".safetensors":
        raise UserError(f"{path} is no weights file; name one that ends in .safetensors or {', '.join(TORCH_FILES)}")
    return SafetensorsWeights(path, [path])


def _files_of(folder: Path) -> list[Path]:
    indexes, files = sorted(folder.glob(f"*{_INDEX}")), sorted(folder.glob("*.safetensors"))
    if len(indexes) > 1 or (not indexes and len(files) > 1):
        names = ", ".join(path.name for path in indexes or files)
        raise UserError(f"{folder} holds several sets of weights ({names}); name a folder with one")
    if not indexes:
        if not files:
            raise UserError(f"{folder} holds no .safetensors file")
        return files
    index = read_json(indexes[0])
    table = index.get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise UserError(f"{indexes[0]} is damaged: it has no weight_map of file names")
    names = sorted(set(table.values()))
    for name in names:
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise UserError(f"{indexes[0]} names a file outside of its folder: {name!r}")
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing; {indexes[0].name} needs it")
    return [folder / name for name in names]


def read_json(path: Path) -> dict:
    """A JSON object from a file that somebody else wrote.

    Raises:
        UserError: it is missing, too large, or holds something else.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise UserError(f"{path} is larger than {_MAX_JSON_BYTES:,} bytes; it is no configuration")
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({_first_line(error)})") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} holds {type(data).__name__}, not an object")
    return data


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
