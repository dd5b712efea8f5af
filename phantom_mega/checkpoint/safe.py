"""Refuse checkpoints that would run code while they are read.

torch.distributed.checkpoint unpickles `.metadata` without restriction, and byte items with `weights_only=False`. A
checkpoint from somebody else is data, so both are looked at here first, with unpicklers that know nothing but data.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from phantom_mega.errors import UserError

METADATA = ".metadata"
# Written by old megatron-core and read by it with the full unpickler.
_LEGACY = ("common.pt", "modelopt_state")
_MAX_BYTE_ITEM = 64 << 20
_ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
        "TensorProperties", "_MEM_FORMAT_ENCODING", "StorageMeta",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))},
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath"},  # torch notes the folder, as it was given
}  # fmt: skip


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if name in _ALLOWED.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a checkpoint does not need")


def read_metadata(folder: Path) -> Metadata:
    """The checkpoint's table of tensors and of where they lie, read without running anything that it names.

    Args:
        folder: an `iter_...` folder.

    Raises:
        UserError: it is missing, damaged, asks for more than plain data, or names storage outside of the checkpoint.
    """
    path = Path(folder) / METADATA
    try:
        with open(path, "rb") as file:
            metadata = _MetadataUnpickler(file).load()
    except FileNotFoundError:
        raise UserError(
            f"{folder} is not a sharded checkpoint: it has no {METADATA}; name an iter_... folder"
        ) from None
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is not safe to load: {error}") from None
    except Exception as error:  # a damaged pickle can fail in any way
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error})") from None
    if not isinstance(metadata, Metadata):
        raise UserError(f"{path} is damaged: it holds a {type(metadata).__name__}, not a checkpoint's table")
    try:
        _check_entries(path, metadata)
        _check_storage(Path(folder), metadata)
    except (AttributeError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error})") from None
    return metadata


def _check_entries(path: Path, metadata: Metadata) -> None:
    """Tables may hold nothing but what this format has; types are compared, for a pickle can put anything anywhere."""
    tables = metadata.state_dict_metadata, metadata.storage_data
    if not all(isinstance(table, dict) for table in tables):
        raise UserError(f"{path} is damaged: it lacks the tables of tensors and of storage")
    for key, entry in metadata.state_dict_metadata.items():
        if not isinstance(key, str) or not (isinstance(entry, BytesStorageMetadata) or _is_tensor_entry(entry)):
            raise UserError(f"{path} is damaged: the entry {str(key)[:80]!r} describes no tensor")
    for index, info in metadata.storage_data.items():
        numbers = (info.offset, info.length) if isinstance(info, _StorageInfo) else (None,)
        if not isinstance(index, MetadataIndex) or not all(isinstance(number, int) for number in numbers):
            raise UserError(f"{path} is damaged: the storage of {str(index)[:80]!r} is not a place in a file")


def _is_tensor_entry(entry: object) -> bool:
    """Whether shape, number format and parts of a tensor are what they must be."""
    if not isinstance(entry, TensorStorageMetadata) or not isinstance(entry.size, torch.Size):
        return False
    ndim = len(entry.size)
    return isinstance(entry.properties.dtype, torch.dtype) and all(
        isinstance(chunk, ChunkStorageMetadata)
        and isinstance(chunk.offsets, torch.Size)
        and isinstance(chunk.sizes, torch.Size)
        and len(chunk.offsets) == len(chunk.sizes) == ndim
        and min((*chunk.offsets, *chunk.sizes, *entry.size), default=0) >= 0
        for chunk in entry.chunks
    )


def _check_storage(folder: Path, metadata: Metadata) -> None:
    sizes: dict[str, int] = {}
    for index, info in metadata.storage_data.items():
        name = info.relative_path
        if not isinstance(name, str) or Path(name).name != name or "\\" in name or name in ("", ".."):
            raise UserError(f"{folder / METADATA} names storage outside of the checkpoint for {index.fqn}: {name!r}")
        path = folder / name
        if name not in sizes:
            if path.is_symlink() or not path.is_file():
                raise UserError(f"{path} is missing or not a plain file; restore it from a copy of the checkpoint")
            sizes[name] = path.stat().st_size
        if info.offset < 0 or info.length < 0 or info.offset + info.length > sizes[name]:
            raise UserError(
                f"{path} has {sizes[name]:,} bytes, but {index.fqn} has {info.length:,} at {info.offset:,}; the file "
                "was cut short, or the table is of another checkpoint"
            )


def read_byte_item(folder: Path, key: str, info: _StorageInfo) -> bytes:
    """The bytes of one item that is not a tensor.

    Args:
        folder: the checkpoint.
        key: names it in errors.
        info: where it lies.

    Raises:
        UserError: it is larger than 64 MiB, which no such item of this project is.
    """
    if info.length > _MAX_BYTE_ITEM:
        raise UserError(
            f"{folder / info.relative_path}: {key} has {info.length:,} bytes; {_MAX_BYTE_ITEM:,} is the most"
        )
    with open(folder / info.relative_path, "rb") as file:
        file.seek(info.offset)
        return file.read(info.length)


def load_byte_item(folder: Path, key: str, info: _StorageInfo) -> object:
    """One item that is not a tensor, with torch's unpickler for plain data.

    Raises:
        UserError: it is damaged or asks for more than plain data.
    """
    raw = read_byte_item(folder, key, info)
    try:
        return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if "Unsupported" in line or "GLOBAL" in line), error)
        where = f"{folder / info.relative_path}: {key}"
        raise UserError(f"{where} is not safe to load or damaged ({type(error).__name__}: {reason})") from None


def byte_items(metadata: Metadata) -> dict[str, _StorageInfo]:
    """Where each item that is not a tensor lies, by its key."""
    table = metadata.state_dict_metadata
    return {
        index.fqn: info
        for index, info in metadata.storage_data.items()
        if isinstance(table.get(index.fqn), BytesStorageMetadata)
    }


def check(folder: Path) -> None:
    """Refuse a checkpoint that torch or megatron would unpickle more of than plain data; reads no tensor.

    Args:
        folder: an `iter_...` folder.

    Raises:
        UserError: names the file and what it asks for.
    """
    folder = Path(folder)
    for name in _LEGACY:
        if (folder / name).exists():
            raise UserError(
                f"{folder / name} is not part of this format, and megatron-core would unpickle it; remove it"
            )
    for key, info in byte_items(read_metadata(folder)).items():
        load_byte_item(folder, key, info)
