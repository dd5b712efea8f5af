"""Read single tensors of a sharded checkpoint, in one process, without megatron and without loading the rest."""

from __future__ import annotations

import difflib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata

from phantom_mega.checkpoint import safe
from phantom_mega.errors import UserError

_COMMON = "common_state/"


@dataclass(frozen=True)
class Chunk:
    """A part of a tensor, and where it lies.

    Attributes:
        offsets, sizes: its place in the whole tensor.
        file: name of the file.
        start, length: bytes of it in the file.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of a checkpoint.

    Attributes:
        shape: of the whole tensor.
        dtype: its number format.
        chunks: its parts, in the order of their offsets.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[Chunk, ...]

    @property
    def numel(self) -> int:
        """Elements of the whole tensor."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return self.numel * self.dtype.itemsize


class CheckpointReader:
    """One checkpoint, opened for reading; files are opened for each read and closed after it.

    Args:
        folder: an `iter_...` folder.

    Attributes:
        tensors: `TensorEntry` by key, in the order of the table.

    Raises:
        UserError: see `safe.read_metadata`; or a tensor's parts are not in the files.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.metadata = safe.read_metadata(self.folder)
        self.tensors = {
            key: self._entry(key, entry)
            for key, entry in self.metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }

    def _entry(self, key: str, entry: TensorStorageMetadata) -> TensorEntry:
        chunks = []
        for chunk in entry.chunks:
            info = self.metadata.storage_data.get(MetadataIndex(key, chunk.offsets))
            if info is None:
                raise UserError(
                    f"{self.folder / safe.METADATA} does not say where {key} at {tuple(chunk.offsets)} lies"
                )
            if math.prod(chunk.sizes) * entry.properties.dtype.itemsize > info.length:
                raise UserError(f"{self.folder / safe.METADATA}: {key} claims more than its {info.length:,} bytes hold")
            place = tuple(chunk.offsets), tuple(chunk.sizes)
            chunks.append(Chunk(*place, info.relative_path, info.offset, info.length))
        chunks.sort(key=lambda chunk: chunk.offsets)
        return TensorEntry(tuple(entry.size), entry.properties.dtype, tuple(chunks))

    def read(self, key: str) -> torch.Tensor:
        """A whole tensor; needs about twice its bytes while it is read.

        Raises:
            UserError: there is no such tensor, or it is damaged.
        """
        shape = self.entry(key).shape
        return self.read_slice(key, (0,) * len(shape), shape)

    def read_slice(self, key: str, offsets: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
        """A part of a tensor; reads the chunks that hold some of it and no others.

        Args:
            key: of the tensor.
            offsets, sizes: the part's place, one number per dimension.

        Raises:
            UserError: there is no such tensor, it is damaged, or the part is not inside of it.
        """
        entry = self.entry(key)
        inside = len(offsets) == len(sizes) == len(entry.shape) and all(
            min(start, size) >= 0 and start + size <= whole
            for start, size, whole in zip(offsets, sizes, entry.shape, strict=True)
        )
        if not inside:
            raise UserError(f"{key} has shape {list(entry.shape)}; it has no part {list(offsets)} + {list(sizes)}")
        shares = [(chunk, *overlap) for chunk in entry.chunks if (overlap := _overlap(offsets, sizes, chunk))]
        # Before memory is taken: chunks are no larger than their files, a damaged table's shape can be anything.
        if sum(math.prod(shape) for *_, shape in shares) != math.prod(sizes):
            raise UserError(f"{self.folder}: the chunks of {key} do not cover {list(offsets)} + {list(sizes)}")
        if len(shares) == 1:  # no second copy
            chunk, _, inner, _ = shares[0]
            return self._load(key, entry, chunk)[inner].contiguous()
        result = torch.empty(tuple(sizes), dtype=entry.dtype)
        for chunk, outer, inner, _ in shares:
            result[outer] = self._load(key, entry, chunk)[inner]
        return result

    def byte_items(self) -> dict[str, bytes]:
        """The raw bytes of every item that is not a tensor, by its key."""
        places = safe.byte_items(self.metadata)
        return {key: safe.read_byte_item(self.folder, key, info) for key, info in places.items()}

    def common(self) -> dict:
        """What all ranks share: parameter groups of the optimizer, the schedule's position.

        Raises:
            UserError: it is missing, damaged, or asks for more than plain data.
        """
        for key, info in safe.byte_items(self.metadata).items():
            if key.startswith(_COMMON):
                loaded = safe.load_byte_item(self.folder, key, info)
                if isinstance(loaded, list) and len(loaded) == 1 and isinstance(loaded[0], dict):
                    return loaded[0]
                raise UserError(f"{self.folder / info.relative_path}: {key} is not a dict of settings")
        raise UserError(f"{self.folder} has no {_COMMON}... item; it was not written by this trainer")

    def entry(self, key: str) -> TensorEntry:
        """Where a tensor lies.

        Raises:
            UserError: there is none of that key; names the nearest.
        """
        if key not in self.tensors:
            raise UserError(f"{self.folder} has no tensor {key!r}{_nearest(key, self.tensors)}")
        return self.tensors[key]

    def _load(self, key: str, entry: TensorEntry, chunk: Chunk) -> torch.Tensor:
        path = self.folder / chunk.file
        with open(path, "rb") as file:
            file.seek(chunk.start)
            raw = io.BytesIO(file.read(chunk.length))
        try:
            tensor = torch.load(raw, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged bytes can fail in any way
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{path}: {key} at {list(chunk.offsets)} is damaged ({reason})") from None
        expected = chunk.sizes, entry.dtype
        found = (tuple(tensor.shape), tensor.dtype) if isinstance(tensor, torch.Tensor) else type(tensor)
        if found != expected:
            raise UserError(
                f"{path}: {key} at {list(chunk.offsets)} is {found}, not {expected} as {safe.METADATA} says"
            )
        return tensor


def _overlap(offsets: Sequence[int], sizes: Sequence[int], chunk: Chunk) -> tuple | None:
    """(slices of the part, slices of the chunk, shape) of what both hold; None where that is nothing."""
    to_slices, from_slices, shape = [], [], []
    for start, size, chunk_start, chunk_size in zip(offsets, sizes, chunk.offsets, chunk.sizes, strict=True):
        first, last = max(start, chunk_start), min(start + size, chunk_start + chunk_size)
        if last <= first:
            return None
        to_slices.append(slice(first - start, last - start))
        from_slices.append(slice(first - chunk_start, last - chunk_start))
        shape.append(last - first)
    return tuple(to_slices), tuple(from_slices), tuple(shape)


def _nearest(key: str, known: dict) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"; the nearest is {near[0]!r}" if near else ""
