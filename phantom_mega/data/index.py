"""The index of a data set: one parquet row per sample, all that the plan of packs needs, no media.

`key, shard, offset, bytes` find the sample in its tar; sizes, lengths, token counts and references decide packs.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from phantom_mega.data.schema import SCHEMA_VERSION, Triplet
from phantom_mega.errors import UserError

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


def write_index(folder: Path, rows: list[dict], tokenizer: str | None) -> Path:
    """Write `index.parquet` whole or not at all.

    Args:
        folder: where the shards lie.
        rows: of `index_row`.
        tokenizer: what `text_tokens` were counted with (as in `conditioning.text_encoder`).
    """
    metadata = {"schema_version": str(SCHEMA_VERSION), "tokenizer": tokenizer or ""}
    table = pa.Table.from_pylist(rows, schema=SCHEMA).replace_schema_metadata(metadata)
    path, temporary = folder / INDEX_NAME, folder / f".{INDEX_NAME}.tmp"
    pq.write_table(table, temporary)
    os.replace(temporary, path)
    return path


class TripletIndex:
    """Rows of one or more data sets, as columns.

    Attributes:
        table: the rows; `shard` is made an absolute path.
        tokenizer: what the captions were counted with, or "".
    """

    def __init__(self, table: pa.Table, tokenizer: str = ""):
        self.table = table
        self.tokenizer = tokenizer
        self._columns: dict[str, np.ndarray] = {}

    @classmethod
    def open(cls, paths: list[str | os.PathLike]) -> TripletIndex:
        """Read and join indexes.

        Args:
            paths: `index.parquet` files, or folders that hold one.

        Raises:
            UserError: no path, a missing or foreign file, another schema version, two tokenizers, or a key twice.
        """
        if not paths:
            raise UserError("data.index_path is empty; name at least one index.parquet or its folder")
        tables, tokenizers = [], {}
        for path in map(Path, paths):
            file = path / INDEX_NAME if path.is_dir() else path
            if not file.is_file():
                raise UserError(f"there is no index at {file}; write one with tools/build_index.py {file.parent}")
            table, tokenizer = _read(file)
            tables.append(table)
            tokenizers.setdefault(tokenizer, file)
        if len(tokenizers) > 1:
            named = "; ".join(f"{file}: {name or 'not counted'}" for name, file in tokenizers.items())
            raise UserError(
                f"captions were counted by different tokenizers ({named}); recount with tools/build_index.py"
            )
        index = cls(pa.concat_tables(tables), next(iter(tokenizers)))
        keys, counts = np.unique(index.column("key").astype(str), return_counts=True)
        if (counts > 1).any():
            raise UserError(
                f"the key {keys[counts > 1][0]!r} occurs {counts.max()} times in {', '.join(map(str, paths))}"
            )
        return index

    def __len__(self) -> int:
        return self.table.num_rows

    def column(self, name: str) -> np.ndarray:
        """A scalar column as a NumPy array, kept after its first use."""
        if name not in self._columns:
            self._columns[name] = self.table.column(name).to_numpy()
        return self._columns[name]

    def references(self, row: int) -> list[dict]:
        """The references of one row (`REFERENCE_TYPE`)."""
        return self.table.column("references")[row].as_py()

    def reference_kinds(self) -> tuple[np.ndarray, np.ndarray]:
        """(offsets [rows + 1], kinds): row i's references have kinds[offsets[i]:offsets[i + 1]]."""
        column = self.table.column("references").combine_chunks()
        offsets = column.offsets.to_numpy()
        kinds = column.values.field("kind").to_numpy(zero_copy_only=False)
        return offsets, kinds


def _read(file: Path) -> tuple[pa.Table, str]:
    try:
        table = pq.read_table(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{file} is not a readable parquet file: {error}") from None
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    version = metadata.get("schema_version")
    if version != str(SCHEMA_VERSION):
        raise UserError(f"{file} has schema version {version!r}; this release reads {SCHEMA_VERSION}")
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise UserError(f"{file} lacks the columns {', '.join(missing)}")
    table = table.select(SCHEMA.names).replace_schema_metadata(None).cast(SCHEMA)
    shards = [str((file.parent / shard).resolve()) for shard in table.column("shard").to_pylist()]
    position = table.schema.get_field_index("shard")
    return table.set_column(position, "shard", pa.array(shards, pa.string())), metadata.get("tokenizer", "")
