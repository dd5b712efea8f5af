"""Cached features: the input head's output on disk, so that training needs neither encoders nor decoders.

A cache is a folder of safetensors files that only grows (each holds some hundred samples and appears whole), the
features of the empty prompt, `cache.json` with the encoders that wrote it, and `index.parquet`, written when all
planned samples are there. Written by tools/cache_features.py, by as many processes as one likes, in any number of runs.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import hashlib
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from phantom_mega.conditioning.head import FeatureDims, SampleFeatures
from phantom_mega.conditioning.linear_vae import SHIPPED
from phantom_mega.conditioning.vision import TINY, TINY_SEED
from phantom_mega.config import RunConfig
from phantom_mega.data.plan import PackPlan, PlannedSample
from phantom_mega.errors import UserError

FORMAT = 1
ABOUT, EMPTY_TEXT, INDEX = "cache.json", "empty_text.safetensors", "index.parquet"
SHARDS = "features-*.safetensors"
SHARD_BYTES = 256 << 20
FIELDS = tuple(field.name for field in dataclasses.fields(SampleFeatures) if field.name != "valid")
ERROR = "error"
MAX_ERROR, MAX_ABOUT = 4096, 1 << 20  # bytes of a message, characters of `cache.json`
OPEN_SHARDS = 128
MAX_EMPTY = 1024  # tokens of the empty prompt
_INDEX = pa.schema([("hash", pa.uint64()), ("shard", pa.dictionary(pa.int32(), pa.string())), ("valid", pa.bool_())])
WRITE = "write it with tools/cache_features.py"
REMOVE = "remove it and run tools/cache_features.py again"
FILL = "train with the seed and data settings that it was written for, or run tools/cache_features.py with these"


def identity(sample: PlannedSample) -> str:
    """`key.digest`: a sample's name in a cache. The digest covers all that its features depend on but its media.

    A key stands for one clip and caption: whoever changes those under the same key must write a new cache.
    """
    parts = [sample.height, sample.width, sample.num_frames, sample.text_tokens]
    plain = [[int(part) for part in group] for group in (parts, sample.frame_indices, sample.references)]
    return f"{sample.key}.{hashlib.blake2b(json.dumps(plain).encode(), digest_size=8).hexdigest()}"


def fingerprint(config: RunConfig) -> dict[str, object]:
    """What the features depend on beside the samples: the encoders as the recipe names them, and their widths."""
    encoders, model = config.conditioning, config.model
    found = {
        f"conditioning.{field.name}": getattr(encoders, field.name)
        for field in dataclasses.fields(encoders)
        if field.name not in ("cached_features", "encode_ahead")
    }
    for name in ("latent_channels", "text_dim", "clip_dim"):
        found[f"model.{name}"] = getattr(model, name)
    if encoders.vae == "linear" and SHIPPED.is_file():
        found["the shipped linear VAE"] = hashlib.sha256(SHIPPED.read_bytes()).hexdigest()
    if encoders.vision_encoder == "tiny":
        found["the tiny vision tower"] = json.dumps([TINY, TINY_SEED])
    return found


def check_fingerprint(folder: Path, config: RunConfig) -> None:
    """Compare a cache's encoders with a recipe's.

    Raises:
        UserError: the folder is no cache, or names every setting that differs, with both values.
    """
    try:
        with open(folder / ABOUT, encoding="utf-8") as file:
            about = json.loads(file.read(MAX_ABOUT))
    except OSError:
        raise UserError(f"{folder} is no feature cache (it has no {ABOUT}); {WRITE}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{folder / ABOUT} is damaged ({error}); remove the cache and {WRITE}") from None
    if not isinstance(about, dict) or not isinstance(about.get("encoders"), dict):
        raise UserError(f"{folder / ABOUT} names no encoders; remove the cache and {WRITE}")
    if about.get("format") != FORMAT:
        raise UserError(f"{folder} has cache format {about.get('format')!r}; this release reads {FORMAT}")
    theirs, ours = about["encoders"], fingerprint(config)
    differ = [
        f"{name} was {theirs.get(name)!r}, is {ours.get(name)!r}"
        for name in dict.fromkeys([*theirs, *ours])
        if theirs.get(name) != ours.get(name)
    ]
    if differ:
        raise UserError(f"the features in {folder} come from other encoders: {'; '.join(differ)}; use another folder")


class FeatureWriter:
    """Appends features to a cache; a file appears whole or not at all.

    Samples wait in memory until a file is full: call `flush` at the end, also when something failed.

    Args:
        folder: of the cache; made if missing.
        config: the recipe; its encoders must be those of what is there already.
        empty_text: [l0, text_dim], features of the empty prompt.
        shard_bytes: a file is written at this size.

    Raises:
        UserError: the folder's features come from other encoders.
    """

    def __init__(self, folder: Path, config: RunConfig, empty_text: torch.Tensor, shard_bytes: int = SHARD_BYTES):
        self.folder, self.shard_bytes = Path(folder), shard_bytes
        self._tensors: dict[str, torch.Tensor] = {}
        self._bytes = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / ABOUT).exists():
            check_fingerprint(self.folder, config)
            return
        # Several processes may get here at once: they all write the same.
        _publish(self.folder / EMPTY_TEXT, serialize({"empty_text": empty_text.float().cpu()}))
        about = json.dumps({"format": FORMAT, "encoders": fingerprint(config)}, indent=1) + "\n"
        _publish(self.folder / ABOUT, about.encode())

    def add(self, sample: PlannedSample, features: SampleFeatures, error: str | None = None) -> None:
        """Append one sample; of one that could not be read (`valid` is False) only the error."""
        name = identity(sample)
        if features.valid:
            added = {f"{name}.{field}": _narrow(getattr(features, field)) for field in FIELDS}
        else:
            message = (error or "unreadable").encode()[:MAX_ERROR]
            added = {f"{name}.{ERROR}": torch.frombuffer(bytearray(message), dtype=torch.uint8)}
        self._tensors |= added
        self._bytes += sum(tensor.numel() * tensor.element_size() for tensor in added.values())
        if self._bytes >= self.shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what waits in memory."""
        if self._tensors:
            _publish(self.folder / SHARDS.replace("*", uuid.uuid4().hex[:16]), serialize(self._tensors))
        self._tensors, self._bytes = {}, 0


def _narrow(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU, in bfloat16 where that loses nothing: encoders that ran in bfloat16 fill half the space."""
    tensor = tensor.detach().float().cpu().contiguous()
    half = tensor.bfloat16()
    return half if torch.equal(half.float(), tensor) else tensor.clone()


def _publish(path: Path, data: bytes | memoryview) -> None:
    """Write a file under a temporary name, then give it its own; readable by others as the umask says."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def scan(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """What a cache holds: (name -> file) of samples with features, and of samples that could not be read.

    Raises:
        UserError: a file is damaged.
    """
    good, bad = {}, {}
    for path in sorted(Path(folder).glob(SHARDS)):
        with _open_shard(path) as file:
            for tensor in file.keys():  # noqa: SIM118 (not a dict)
                name, _, field = tensor.rpartition(".")
                if field in (FIELDS[0], ERROR):
                    (bad if field == ERROR else good)[name] = path.name
    return good, {name: file for name, file in bad.items() if name not in good}


def _open_shard(path: Path):
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); {REMOVE}") from None
    except (RuntimeError, MemoryError) as error:
        raise UserError(f"{path} does not fit into memory ({error})") from None


def write_index(folder: Path) -> int:
    """Publish the index of all that a cache holds, so that training can open it; returns the number of samples."""
    good, bad = scan(folder)
    names = [*good, *bad]
    columns = {
        "name": names,
        "hash": _hashes(names),
        "shard": pa.array([*good.values(), *bad.values()]).dictionary_encode(),
        "valid": [True] * len(good) + [False] * len(bad),
    }
    stream = pa.BufferOutputStream()
    pq.write_table(pa.table(columns).sort_by("hash"), stream)
    _publish(Path(folder) / INDEX, memoryview(stream.getvalue()))
    return len(names)


def _hashes(names: list[str]) -> np.ndarray:
    """uint64 of each name: millions of them fit in memory as numbers, not as strings."""
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, dtype="<u8")


def _read_index(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """(hashes, whether valid, number of the file) of all samples, and the names of the files.

    Raises:
        UserError: it is no such index, has more rows than bytes, or names files elsewhere.
    """
    try:
        with pq.ParquetFile(file, read_dictionary=["shard"]) as parquet:
            # Hashes are as good as random: every row takes its eight bytes. A forged file may repeat one for ever.
            if parquet.metadata.num_rows > file.stat().st_size:
                raise UserError(f"{file} claims {parquet.metadata.num_rows} rows in fewer bytes; {REMOVE}")
            table = parquet.read(columns=_INDEX.names).select(_INDEX.names).cast(_INDEX).unify_dictionaries()
            table.validate(full=True)
        shards = table["shard"].combine_chunks()
        shards = shards.chunk(0) if isinstance(shards, pa.ChunkedArray) else shards
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UserError(f"{file} is damaged ({error}); {REMOVE}") from None
    if any(table[name].null_count for name in _INDEX.names):
        raise UserError(f"{file} has rows without a value; {REMOVE}")
    names = shards.dictionary.to_pylist()
    strange = [name for name in names if not fnmatch.fnmatchcase(name, SHARDS) or "/" in name or not name.isprintable()]
    if strange:
        raise UserError(f"{file} names a file that is none of the cache: {strange[0][:80]!r}; {REMOVE}")
    return table["hash"].to_numpy(), table["valid"].to_numpy(), shards.indices.to_numpy(), names


def _read_empty_text(file: Path, dim: int) -> torch.Tensor:
    """[l0, dim], features of the empty prompt."""
    try:
        with _open_shard(file) as tensors:
            shape = tensors.get_slice("empty_text").get_shape()
            if len(shape) != 2 or shape[1] != dim or not 1 <= shape[0] <= MAX_EMPTY:
                raise UserError(f"{file} has features of the shape {shape}, not [l, {dim}]; {REMOVE}")
            return tensors.get_tensor("empty_text").float()
    except SafetensorError as error:
        raise UserError(f"{file} is damaged ({error}); {REMOVE}") from None


class CachedFeatures:
    """Features read from a finished cache.

    Args:
        folder: as `conditioning.cached_features` names it.
        config: the recipe of the run.

    Attributes:
        empty_text: [l0, text_dim], features of the empty prompt.
        dims: widths of the features.

    Raises:
        UserError: the folder is no finished cache, other encoders wrote it, or the recipe draws samples anew.
    """

    def __init__(self, folder: str | os.PathLike, config: RunConfig):
        self.folder = Path(folder)
        check_fingerprint(self.folder, config)
        if config.data.augment_per_epoch:
            raise UserError(
                "data.augment_per_epoch=true draws crops of time, sizes and references anew in every epoch, which no "
                "cache can hold; set data.augment_per_epoch=false to train with conditioning.cached_features"
            )
        if not (self.folder / INDEX).is_file():
            raise UserError(f"{self.folder} is not finished (it has no {INDEX}); run tools/cache_features.py again")
        self._hashes, self._valid, self._shard_of, self._shards = _read_index(self.folder / INDEX)
        self._open = functools.lru_cache(maxsize=OPEN_SHARDS)(lambda name: _open_shard(self.folder / name))
        model = config.model
        self.empty_text = _read_empty_text(self.folder / EMPTY_TEXT, model.text_dim)
        self.dims = FeatureDims(model.latent_channels, model.text_dim, model.clip_dim)

    def __len__(self) -> int:
        return len(self._hashes)

    def _row(self, name: str) -> int | None:
        """The row of the index that holds a sample."""
        wanted = _hashes([name])[0]
        row = int(np.searchsorted(self._hashes, wanted))
        return row if row < len(self._hashes) and self._hashes[row] == wanted else None

    def _read(self, row: int, names: list[str], fits: Callable[[tuple[tuple[int, ...], ...]], bool]):
        """Tensors of a row's file; None if their shapes do not fit: a file with holes may claim any size for free."""
        shard = self._shards[self._shard_of[row]]
        try:
            file = self._open(shard)
            if not fits(tuple(tuple(file.get_slice(name).get_shape()) for name in names)):
                return None
            return [file.get_tensor(name) for name in names]
        except SafetensorError as error:
            raise UserError(f"{self.folder / shard} is damaged ({error}); {REMOVE}") from None

    def get(self, sample: PlannedSample) -> SampleFeatures:
        """Features of a planned sample on the CPU, float32; `valid` is False if it could not be read.

        Raises:
            UserError: the cache does not hold it, or its file is damaged.
        """
        name = identity(sample)
        row = self._row(name)
        if row is None:
            raise UserError(f"{self.folder} does not hold {_describe(sample)}; {FILL}")
        if not self._valid[row]:
            return SampleFeatures.zeros(sample.shape, self.dims)
        sizes = self.dims.sizes(sample.shape)
        read = self._read(row, [f"{name}.{field}" for field in FIELDS], lambda shapes: shapes == sizes)
        if read is None:
            raise UserError(f"the cached features of {_describe(sample)} have other sizes than planned; {FILL}")
        return SampleFeatures(*(tensor.to(torch.float32, copy=True) for tensor in read))

    def error(self, sample: PlannedSample) -> str | None:
        """Why a sample could not be read when the cache was written; None if it could, or is not there."""
        name = identity(sample)
        row = self._row(name)
        if row is None or self._valid[row]:
            return None
        read = self._read(row, [f"{name}.{ERROR}"], lambda shapes: len(shapes[0]) == 1 and shapes[0][0] <= MAX_ERROR)
        return "unreadable" if read is None else read[0].numpy().tobytes().decode(errors="replace")

    def check_plan(self, plan: PackPlan) -> None:
        """Look for every sample of a plan, before training starts.

        Raises:
            UserError: some are missing; says how many, names one.
        """
        samples = [sample for position in range(len(plan)) for sample in plan.locate(position)[1]]
        missing = [sample for sample in samples if self._row(identity(sample)) is None]
        if missing:
            raise UserError(
                f"{self.folder} lacks {len(missing)} of the plan's {len(samples)} samples, the first is "
                f"{_describe(missing[0])}; {FILL}"
            )


def _describe(sample: PlannedSample) -> str:
    return (
        f"{sample.key} at {sample.width}x{sample.height}, {sample.num_frames} frames from frame "
        f"{sample.frame_indices[0]}, references {list(sample.references)}"
    )
