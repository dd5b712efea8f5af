"""Rewrite a checkpoint for another layout: one `.distcp` file per model-parallel rank, each with that rank's parts.

Any layout can read any checkpoint (`training.checkpoint`); rewritten for its own, a rank reads one file from front to
back instead of slices of many. One process streams tensor by tensor: its memory is bounded by the largest tensor (its
bytes as read, and its values: about twice its size, three times where it lies in several parts), not by the model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from phantom_mega.checkpoint import folder, integrity, safe
from phantom_mega.checkpoint.compare import difference
from phantom_mega.checkpoint.reader import CheckpointReader, TensorEntry
from phantom_mega.checkpoint.sharding import ModelParallelLayout, Part, weight_key
from phantom_mega.errors import UserError
from phantom_mega.files import hidden_folder, publish_folder

OPTIMIZER, EMA, MAIN = "optimizer.", "optimizer.state.ema.", "optimizer.state.param."
_COPIED = ("metadata.json",)
# Of torch's format, and how it describes the trainer's tensors.
_VERSION, _PROPERTIES = "1.0.0", TensorProperties(dtype=torch.float32)


@dataclasses.dataclass(frozen=True)
class Content:
    """What of the source goes into the target.

    Attributes:
        model_only: drop the optimizer's state and the schedule; training can start from it with `train.finetune`.
        ema: put the weights' average in the place of the weights (and of their fp32 copies in the optimizer).
        dtype: number format of floating weights; None keeps theirs. The optimizer's state is never cast.
    """

    model_only: bool = False
    ema: bool = False
    dtype: torch.dtype | None = None

    def keys(self, reader: CheckpointReader) -> list[str]:
        """Keys of the target, in the order in which the source's files hold what they are made of.

        Raises:
            UserError: `ema`, and the source has none.
        """
        if self.ema and not any(key.startswith(EMA) for key in reader.tensors):
            raise UserError(f"{reader.folder} holds no EMA; leave --ema out")
        kept = [key for key in reader.tensors if not (self.model_only and key.startswith(OPTIMIZER))]

        def place(key: str) -> tuple:
            chunks = reader.tensors[self.origin(key)].chunks
            return (chunks[0].file, chunks[0].start) if chunks else ("", 0)

        return sorted(kept, key=place)

    def origin(self, key: str) -> str:
        """Key of the source that holds the values for a key of the target."""
        replaced = self.ema and (key.startswith(MAIN) or not key.startswith(OPTIMIZER))
        return EMA + weight_key(key) if replaced else key

    def entry(self, reader: CheckpointReader, key: str) -> TensorEntry:
        """Shape and number format in the target."""
        entry = reader.tensors[key]
        cast = self.dtype is not None and not key.startswith(OPTIMIZER) and entry.dtype.is_floating_point
        return dataclasses.replace(entry, dtype=self.dtype if cast else entry.dtype)

    def read(self, reader: CheckpointReader, key: str) -> torch.Tensor:
        """The whole tensor as it is to be in the target."""
        return reader.read(self.origin(key)).to(self.entry(reader, key).dtype)


class _RankFile:
    """One rank's `.distcp`, hashed while it is written."""

    def __init__(self, path: Path):
        self.name, self.length, self._digest = path.name, 0, hashlib.sha256()
        self._file = open(path, "wb")  # noqa: SIM115 (open until `close`)

    def write(self, data: bytes | memoryview) -> int:
        """Called by torch.save."""
        written = self._file.write(data)
        self._digest.update(data)
        self.length += written
        return written

    def flush(self) -> None:
        """Called by torch.save after every tensor; the bytes go to disk in `close`."""

    def close(self) -> str:
        """The file's digest, once it is on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._digest.hexdigest()

    def abandon(self) -> None:
        """Close without a word, also with a disk that has no room for what is buffered."""
        with contextlib.suppress(OSError):
            self._file.close()


class CheckpointWriter:
    """Writes the format of torch.distributed.checkpoint's file system writer, with all files open at once.

    Its own writer takes one rank's items after another's, and would read every source tensor once for each tensor rank.

    Args:
        target: an empty folder (`new_checkpoint`).
        layout: one file for each of its ranks.
    """

    def __init__(self, target: Path, layout: ModelParallelLayout):
        self.layout, self.target = layout, target
        self.files = [_RankFile(target / f"__{rank}_0.distcp") for rank in range(layout.ranks)]
        self.tensors: dict = {}
        self.storage: dict[MetadataIndex, _StorageInfo] = {}

    def tensor(self, key: str, whole: torch.Tensor, properties: TensorProperties = _PROPERTIES) -> None:
        """Write all parts of a tensor.

        Args:
            key: of the checkpoint.
            whole: the tensor over all ranks.
            properties: what the table says of it beside its number format.
        """
        parts = self.layout.parts(key, whole.shape)
        chunks = [ChunkStorageMetadata(torch.Size(part.offsets), torch.Size(part.sizes)) for part in parts]
        self.tensors[key] = TensorStorageMetadata(
            dataclasses.replace(properties, dtype=whole.dtype), whole.shape, chunks
        )
        for part in parts:
            self._put(
                self.files[part.rank], MetadataIndex(key, part.offsets), lambda file, p=part: _save(whole, p, file)
            )

    def raw(self, key: str, data: bytes) -> None:
        """Write an item that is not a tensor, as torch.save gave its bytes."""
        self.tensors[key] = BytesStorageMetadata()
        file = self.files[self.layout.stage(key) * self.layout.tensor]
        self._put(file, MetadataIndex(key), lambda file: file.write(data))

    def _put(self, file: _RankFile, index: MetadataIndex, write: Callable) -> None:
        start = file.length
        write(file)
        self.storage[index] = _StorageInfo(file.name, start, file.length - start)

    def finish(self, order: Iterable[str] | None = None, version: str | None = _VERSION) -> dict[str, str]:
        """Close the files and write the table.

        Args:
            order: keys in the order of the table; by default as written.
            version: of the format, as torch counts it.

        Returns:
            Digests by file name, for `integrity.write_manifest`.
        """
        digests = {file.name: file.close() for file in self.files}
        tensors = {key: self.tensors[key] for key in order or self.tensors if key in self.tensors}
        metadata = Metadata(tensors, storage_data=self.storage, version=version)
        (self.target / safe.METADATA).write_bytes(pickle.dumps(metadata))
        return digests

    def abandon(self) -> None:
        """Close the files without a word; harmless after `finish`."""
        for file in self.files:
            file.abandon()


def _save(whole: torch.Tensor, part: Part, file: _RankFile) -> None:
    view = whole[tuple(slice(start, start + size) for start, size in zip(part.offsets, part.sizes, strict=True))]
    # torch.save writes all of a view's storage.
    alone = view.is_contiguous() and view.untyped_storage().nbytes() == view.nbytes
    torch.save(view if alone else view.clone(memory_format=torch.contiguous_format), file)


@contextlib.contextmanager
def new_checkpoint(target: Path, overwrite: bool = False, source: Path | None = None) -> Iterator[Path]:
    """A hidden folder that becomes the checkpoint `target` when the block ends well, and is removed otherwise.

    Args:
        target: the new checkpoint's folder, of any name.
        overwrite: replace a checkpoint that is there.
        source: the checkpoint that it is made of, which it may not replace.

    Raises:
        UserError: the target is in the way, or the disk is full.
    """
    _check_target(target, overwrite, source)
    temporary = None
    try:
        temporary = hidden_folder(target)
        yield temporary
        publish_folder(temporary, target)
    except OSError as error:
        raise UserError(f"{target} could not be written: {error.strerror or error}; nothing was changed") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def rewrite(
    source: Path,
    target: Path,
    layout: ModelParallelLayout,
    config_yaml: str,
    content: Content | None = None,
    *,
    verify: bool = False,
    overwrite: bool = False,
    progress: Callable[[str, int], None] = lambda what, nbytes: None,
) -> Path:
    """Write a checkpoint for a target layout, whole or not at all.

    Args:
        source: an `iter_...` folder.
        target: the new checkpoint's folder, of any name.
        layout: of the target; already checked against the model.
        config_yaml: text of the target's `config.yaml`.
        content: what to keep; everything by default.
        verify: read the new checkpoint back and compare it with the source tensor by tensor before it gets its name.
        overwrite: replace a checkpoint that is there.
        progress: called with `write` or `verify` and the bytes of the source's tensors that were just handled.

    Returns:
        `target`.

    Raises:
        UserError: the source is damaged or unsafe, the target is in the way, the disk is full, or verification failed.
    """
    content = content or Content()
    safe.check(source)
    reader = CheckpointReader(source)
    with new_checkpoint(target, overwrite, source) as temporary:
        known = _write_tensors(reader, temporary, layout, content, progress)
        _write_descriptions(source, temporary, config_yaml, content)
        integrity.write_manifest(temporary, known)
        if verify:
            _verify(reader, temporary, content, progress)
    return target


def _write_tensors(
    reader: CheckpointReader, target: Path, layout: ModelParallelLayout, content: Content, progress: Callable
) -> dict[str, str]:
    table, writer = reader.metadata.state_dict_metadata, CheckpointWriter(target, layout)
    try:
        for key in content.keys(reader):
            writer.tensor(key, content.read(reader, key), table[key].properties)
            progress("write", reader.tensors[content.origin(key)].nbytes)
        for key, data in _byte_items(reader, content):
            writer.raw(key, data)
        return writer.finish(table, reader.metadata.version)
    finally:
        writer.abandon()


def _byte_items(reader: CheckpointReader, content: Content) -> Iterator[tuple[str, bytes]]:
    for key, data in reader.byte_items().items():
        if key.startswith("common_state/") and content.model_only:
            common = {name: value for name, value in reader.common().items() if name not in ("optimizer", "scheduler")}
            buffer = io.BytesIO()
            torch.save([common], buffer)
            yield key, buffer.getvalue()
        elif not (content.model_only and key.startswith(OPTIMIZER)):
            yield key, data


def _write_descriptions(source: Path, target: Path, config_yaml: str, content: Content) -> None:
    (target / "config.yaml").write_text(config_yaml)
    state = json.loads((source / folder.STATE).read_text())
    if content.model_only:
        state["content"] = "model"
    (target / folder.STATE).write_text(json.dumps(state, indent=1))
    for name in _COPIED:
        shutil.copyfile(source / name, target / name)


def _verify(reader: CheckpointReader, target: Path, content: Content, progress: Callable) -> None:
    written = CheckpointReader(target)
    wanted = content.keys(reader)
    if set(wanted) != set(written.tensors):
        raise UserError(f"verification failed: other tensors were written than asked for; {target} is removed")
    for key in wanted:
        found = difference(content.read(reader, key), written.read(key))
        if found:
            raise UserError(f"verification failed: {key}: {found}; the new checkpoint is removed, try another disk")
        progress("verify", reader.tensors[content.origin(key)].nbytes)


def _check_target(target: Path, overwrite: bool, source: Path | None) -> None:
    if not target.exists() and not target.is_symlink():
        return
    if source is not None and target.resolve() == source.resolve():
        raise UserError(f"{target} is the source; name another folder")
    if not overwrite:
        raise UserError(f"{target} is there already; name another folder, or replace it with --overwrite")
    if not (target / folder.STATE).is_file():
        raise UserError(f"{target} is not a checkpoint, so --overwrite does not replace it; name another folder")
