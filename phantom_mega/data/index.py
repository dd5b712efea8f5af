"""The index of a data set: one parquet row per sample, all that the plan of packs needs, no media.

`key, shard, offset, bytes` find the sample in its tar; sizes, lengths, token counts and references decide packs.

An index may come from anybody. `shard` is a path below the index's own folder: neither absolute nor with `..` (a link
that the user put there is followed). Spans are not believed: a reader takes no more than the shard has, and no more
than `shards.MAX_SAMPLE_BYTES`. Numbers that no sample has, and files that unpack to far more than their size, are
refused on opening.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from phantom_mega.data.hashing import hash_keys
from phantom_mega.data.schema import KEY_PATTERN, MAX_FPS, MAX_REFERENCES, SCHEMA_VERSION, Triplet
from phantom_mega.errors import UserError
from phantom_mega.files import sync

INDEX_NAME = "index.parquet"
REFERENCE_TYPE = pa.struct(
    [
        ("phrase", pa.string()),
        ("category", pa.string()),
        ("kind", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("video_id", pa.string()),
        ("frame", pa.int64()),
        ("box", pa.list_(pa.float64())),
        ("mask", pa.bool_()),
    ]
)
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("bytes", pa.int64()),
        ("clip_bytes", pa.int64()),
        ("video_id", pa.string()),
        ("codec", pa.string()),
        ("frames", pa.int32()),
        ("fps", pa.float64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("text_tokens", pa.int32()),
        ("references", pa.list_(REFERENCE_TYPE)),
        ("scores", pa.map_(pa.string(), pa.float64())),
    ]
)
# What training reads: of the references only the kinds. The rest is several times as large.
_SHARDS = pa.dictionary(pa.int32(), pa.string())
_KINDS = pa.list_(pa.struct([("kind", pa.string())]))
_PLANNED = pa.schema(
    [("shard", _SHARDS)]
    + [(name, SCHEMA.field(name).type) for name in ("key", "offset", "bytes", "clip_bytes", "frames", "fps")]
    + [(name, SCHEMA.field(name).type) for name in ("height", "width", "text_tokens")]
    + [("references", _KINDS)]
)
_KIND = "references.list.element.kind"
_LEAST = {"offset": 0, "bytes": 0, "clip_bytes": 0, "text_tokens": 0, "frames": 1, "height": 1, "width": 1, "fps": 0}
# A parquet file may repeat a value a million times in a few bytes. The dullest real index has one row a byte.
_MAX_ROWS_PER_BYTE = 4


def index_row(triplet: Triplet, shard: str, offset: int, size: int, clip_bytes: int) -> dict:
    """One row: where the sample lies, and what the plan reads of it.

    Args:
        triplet: the sample.
        shard: file name of the tar, relative to the index.
        offset: byte of the sample's first tar header.
        size: bytes from there to the end of its last member.
        clip_bytes: bytes of the clip alone.
    """
    references = [
        {
            "phrase": reference.phrase,
            "category": reference.category,
            "kind": reference.kind,
            "height": reference.height,
            "width": reference.width,
            "video_id": reference.source.video_id,
            "frame": reference.source.frame,
            "box": list(reference.source.box),
            "mask": reference.mask,
        }
        for reference in triplet.references
    ]
    fields = ("key", "video_id", "codec", "frames", "fps", "height", "width", "text_tokens")
    row = {name: getattr(triplet, name) for name in fields}
    row |= {"shard": shard, "offset": offset, "bytes": size, "clip_bytes": clip_bytes}
    return row | {"references": references, "scores": list(triplet.scores.items())}


def write_index(folder: Path, rows: Iterable[dict], tokenizer: str | None, batch: int = 10_000) -> Path:
    """Write `index.parquet` whole or not at all.

    Args:
        folder: where the shards lie.
        rows: of `index_row`; a generator is consumed `batch` rows at a time.
        tokenizer: what `text_tokens` were counted with (as in `conditioning.text_encoder`).
        batch: rows of a row group.
    """
    metadata = {"schema_version": str(SCHEMA_VERSION), "tokenizer": tokenizer or ""}
    path, temporary = folder / INDEX_NAME, folder / f".{INDEX_NAME}.tmp"
    held = []
    try:
        with pq.ParquetWriter(temporary, SCHEMA.with_metadata(metadata)) as writer:
            for row in rows:
                held.append(row)
                if len(held) == batch:
                    writer.write_table(pa.Table.from_pylist(held, schema=writer.schema))
                    held = []
            writer.write_table(pa.Table.from_pylist(held, schema=writer.schema))
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


class TripletIndex:
    """Rows of one or more data sets, as columns.

    Opened from files it holds what training needs, about 150 bytes a row; other columns are read when asked for.

    Attributes:
        table: the rows; `shard` is an absolute path.
        tokenizer: what the captions were counted with, or "".
    """

    def __init__(self, table: pa.Table, tokenizer: str = "", files: tuple[Path, ...] = ()):
        self.table = table.combine_chunks()
        self.tokenizer = tokenizer
        self.files = files
        self._columns: dict[str, np.ndarray] = {}
        self._on_demand: dict[str, pa.ChunkedArray] = {}

    @classmethod
    def open(cls, paths: str | os.PathLike | list[str | os.PathLike]) -> TripletIndex:
        """Read and join indexes.

        Args:
            paths: `index.parquet` files, or folders that hold one.

        Raises:
            UserError: no path, a missing or foreign file, another schema version, two tokenizers, or a key twice.
        """
        paths = [paths] if isinstance(paths, str | os.PathLike) else paths
        if not paths:
            raise UserError("data.index_path is empty; name at least one index.parquet or its folder")
        tables, files, tokenizers = [], [], {}
        for path in map(Path, paths):
            file = path / INDEX_NAME if path.is_dir() else path
            if not file.is_file():
                raise UserError(f"there is no index at {file}; write one with tools/build_index.py {file.parent}")
            table, tokenizer = _read(file)
            tables.append(table)
            files.append(file)
            if table.num_rows:
                tokenizers.setdefault(tokenizer, file)
        if len(tokenizers) > 1:
            named = "; ".join(f"{file}: {name or 'not counted'}" for name, file in tokenizers.items())
            raise UserError(
                f"captions were counted by different tokenizers ({named}); "
                "recount them with tools/build_index.py --recount-text"
            )
        index = cls(pa.concat_tables(tables).unify_dictionaries(), next(iter(tokenizers), ""), tuple(files))
        index._check_unique()
        return index

    def __len__(self) -> int:
        return self.table.num_rows

    def column(self, name: str) -> np.ndarray:
        """A scalar column as a NumPy array, kept after its first use (strings cost ~100 bytes a row: see `value`)."""
        if name not in self._columns:
            column = self._arrow(name)
            if pa.types.is_dictionary(column.type):  # one string object for all rows of a shard
                codes = _one_array(column)
                names = np.array(codes.dictionary.to_pylist(), dtype=object)
                self._columns[name] = names[codes.indices.to_numpy()] if len(names) else np.zeros(0, dtype=object)
            else:
                self._columns[name] = column.to_numpy()
        return self._columns[name]

    def value(self, name: str, row: int):
        """One entry of a column as a Python object, without converting the column."""
        return self._arrow(name)[int(row)].as_py()

    def references(self, row: int) -> list[dict]:
        """The references of one row (`REFERENCE_TYPE`); the first call on an opened index reads the column."""
        column = self._load("references") if self.files else self.table.column("references")
        return column[int(row)].as_py()

    def reference_kinds(self) -> tuple[np.ndarray, np.ndarray]:
        """(offsets [rows + 1], kinds): row i's references have kinds[offsets[i]:offsets[i + 1]]."""
        lists = _one_array(self.table.column("references"))
        offsets = lists.offsets.to_numpy().astype(np.int64)
        kinds = lists.values.field("kind").dictionary_encode()
        names = np.array(kinds.dictionary.to_pylist(), dtype=object)
        indices = kinds.indices.to_numpy()[offsets[0] : offsets[-1]]
        return offsets - offsets[0], names[indices] if len(names) else np.zeros(0, dtype=object)

    def keys(self) -> Iterator[str]:
        """All keys in row order, without holding them all."""
        for batch in self.table.select(["key"]).to_batches(max_chunksize=1 << 16):
            yield from batch.column(0).to_pylist()

    @functools.cached_property
    def key_hashes(self) -> np.ndarray:
        """uint64 [rows], the hash of every key, from which all draws are made."""
        return hash_keys(self.keys())

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of all that a plan reads of the index."""
        digest = hashlib.blake2b(self.key_hashes.tobytes(), digest_size=16)
        for name in ("frames", "fps", "height", "width", "text_tokens"):
            digest.update(np.ascontiguousarray(self.column(name)).tobytes())
        offsets, kinds = self.reference_kinds()
        digest.update(offsets.tobytes() + ",".join(kinds).encode())
        return digest.hexdigest()

    def _arrow(self, name: str) -> pa.ChunkedArray:
        return self.table.column(name) if self.table.schema.get_field_index(name) >= 0 else self._load(name)

    def _load(self, name: str) -> pa.ChunkedArray:
        """A column that training does not need, from the files."""
        if name not in self._on_demand:
            parts = [_read_column(file, name) for file in self.files]
            chunks = [chunk for part in parts for chunk in part.chunks]
            self._on_demand[name] = pa.chunked_array(chunks)
        return self._on_demand[name]

    def _check_unique(self) -> None:
        """Raise UserError if a key occurs twice: its two samples could not be told apart."""
        order = np.argsort(self.key_hashes, kind="stable")
        hashes = self.key_hashes[order]
        for i in np.flatnonzero(hashes[1:] == hashes[:-1]):
            rows = (order[i], order[i + 1])
            first, second = (self.value("key", row) for row in rows)
            if first == second:
                shards = " and in ".join(self.value("shard", row) for row in rows)
                raise UserError(f"the key {first!r} occurs twice: in {shards}; keys are unique over all data sets")


def _read(file: Path) -> tuple[pa.Table, str]:
    """Planned columns and tokenizer of one index file."""
    try:
        schema = pq.read_schema(file)
        found = schema.metadata or {}
        metadata = {key.decode(errors="replace"): value.decode(errors="replace") for key, value in found.items()}
        version = metadata.get("schema_version")
        if version != str(SCHEMA_VERSION):
            raise UserError(f"{file} has schema version {version!r}; this release reads {SCHEMA_VERSION}")
        missing = [name for name in SCHEMA.names if name not in schema.names]
        if missing:
            raise UserError(f"{file} lacks the columns {', '.join(missing)}")
        with pq.ParquetFile(file, read_dictionary=["shard", "key"]) as parquet:
            _check_expansion(file, parquet.metadata)
            table = parquet.read(columns=[*_PLANNED.names[:-1], _KIND])
        table.validate(full=True)  # text that is none, numbers of entries that do not exist
        _check_keys(file, table.column("key"))
        table = table.select(_PLANNED.names).replace_schema_metadata(None).cast(_PLANNED)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} is not a readable parquet file: {error}") from None
    _check_values(file, table)
    folder = file.parent.resolve()
    shards = _one_array(table.column("shard").unify_dictionaries())
    names = shards.dictionary.to_pylist()
    outside = [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]
    if outside:
        raise UserError(
            f"{file} names a shard outside of its folder: {outside[0]!r}; rebuild it with tools/build_index.py"
        )
    wrong = [name for name in names if not name or not name.isprintable()]
    if wrong:
        raise UserError(f"{file} names a shard {wrong[0][:80]!r}; rebuild it with tools/build_index.py")
    paths = pa.array([str(folder / name) for name in names], pa.string())
    shards = pa.DictionaryArray.from_arrays(shards.indices, paths)
    return table.set_column(0, "shard", shards), metadata.get("tokenizer", "")


def _read_column(file: Path, name: str) -> pa.ChunkedArray:
    """A column that training does not need."""
    try:
        column = pq.read_table(file, columns=[name]).column(name).cast(SCHEMA.field(name).type)
        column.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} has a damaged column {name}: {error}") from None
    return column


def _check_expansion(file: Path, metadata: pq.FileMetaData) -> None:
    """Refuse a file that would unpack to far more than its size, before it does."""
    rows, references = metadata.num_rows, 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = (group.column(i) for i in range(group.num_columns))
        references += sum(column.num_values for column in columns if column.path_in_schema == _KIND)
    size = file.stat().st_size
    if rows > _MAX_ROWS_PER_BYTE * size or references > MAX_REFERENCES * rows:
        raise UserError(
            f"{file} claims {rows} rows and {references} references in {size} bytes; rebuild it with "
            "tools/build_index.py"
        )


def _check_keys(file: Path, keys: pa.ChunkedArray) -> None:
    """Refuse what is no key; read as a dictionary, so that a long one that is repeated takes no memory."""
    for chunk in keys.chunks:
        names = chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk
        wrong = names.filter(pc.invert(pc.match_substring_regex(names, rf"\A{KEY_PATTERN}\z")))
        if len(wrong):
            raise UserError(f"{file} has a key {wrong[0].as_py()[:80]!r}; a key is letters, digits, _ and - only")


def _check_values(file: Path, table: pa.Table) -> None:
    """Raise UserError if a value is missing, or is one that no sample has."""
    kinds = _one_array(table.column("references")).values
    empty = [name for name in table.column_names if table.column(name).null_count]
    if kinds.null_count or kinds.field("kind").null_count:
        empty.append("references")
    if empty:
        raise UserError(f"{file} has rows without a value for {', '.join(empty)}; rebuild it with tools/build_index.py")
    for name, least in _LEAST.items():
        found = pc.min(table.column(name)).as_py()
        if found is not None and not found >= least:
            raise UserError(f"{file} has {name}={found}, which no sample has; rebuild it with tools/build_index.py")
    # NaN is in no order: count the rates that are none.
    if pc.sum(pc.less_equal(table.column("fps"), MAX_FPS)).as_py() not in (None, table.num_rows):
        raise UserError(f"{file} has rows whose fps is above {MAX_FPS}; rebuild it with tools/build_index.py")


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece (pyarrow gives an array or a column of one chunk, by version and type)."""
    combined = column.combine_chunks()
    return combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined
