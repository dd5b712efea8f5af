"""Tables of stages: parquet files, a row's part given by its name, so that new videos leave other parts as they are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from phantom_mega.curation.engine.stage import INPUT, Row, Stage
from phantom_mega.errors import UserError
from phantom_mega.files import sync, whole_file

MADE_FROM, CONTENT = b"phantom_mega.made_from", b"phantom_mega.content"


def part_of(key: str, parts: int) -> int:
    """The part that a row belongs to."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % parts


class Table:
    """The table of one stage.

    Args:
        folder: of all stages.
        stage: its name.
        parts: number of files.
    """

    def __init__(self, folder: Path, stage: str, parts: int):
        self.stage, self.parts, self.folder = stage, parts, Path(folder) / stage

    def path(self, part: int) -> Path:
        """File of a part."""
        return self.folder / f"part-{part:05d}.parquet"

    def stamp(self, part: int) -> tuple[bytes, bytes] | None:
        """(digest of what the part was made from, digest of its rows), or None where there is no such file.

        Raises:
            UserError: the file is damaged.
        """
        path = self.path(part)
        if not path.is_file():
            return None
        try:
            metadata = pq.read_metadata(path).metadata or {}
            return metadata[MADE_FROM], metadata[CONTENT]
        except (pa.ArrowException, OSError, KeyError):
            raise UserError(f"{path} is damaged; remove it, and the stage makes it anew") from None

    def write(self, part: int, rows: Sequence[Row], schema: pa.Schema, made_from: bytes) -> None:
        """Write a part, whole or not at all; equal rows give equal bytes.

        Raises:
            UserError: the disk is full.
        """
        names = set(schema.names)
        for row in rows:
            if unknown := row.keys() - names:
                raise TypeError(f"stage {self.stage} gave a column {min(unknown)!r} that it does not declare")
        self.write_table(part, pa.Table.from_pylist(list(rows), schema=schema), made_from)

    def write_table(self, part: int, table: pa.Table, made_from: bytes) -> None:
        """As `write`, of rows that are a table of the stage's schema already."""
        content = _content(table)
        table = table.replace_schema_metadata({MADE_FROM: made_from, CONTENT: content})
        self.folder.mkdir(parents=True, exist_ok=True)
        with whole_file(self.path(part)) as path:
            pq.write_table(table, path, compression="zstd")
            sync(path)
        sync(self.folder)

    def read_part(self, part: int, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows of a part, accepted or not.

        Raises:
            UserError: the file is damaged or missing.
        """
        try:
            return pq.read_table(self.path(part), columns=None if columns is None else list(columns))
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{self.path(part)} cannot be read ({error}); run stage {self.stage} again") from None

    def accepted(self, part: int, columns: Iterable[str]) -> pa.Table:
        """Accepted rows of a part."""
        columns = list(columns)
        table = self.read_part(part, [*columns, "accepted"])
        return table.filter(table["accepted"]).select(columns)

    def read(self, columns: Sequence[str] | None = None, accepted: bool | None = None) -> pa.Table:
        """Rows of all parts, by part.

        Args:
            columns: all but the digests by default.
            accepted: keep accepted (True) or rejected rows (False) alone.
        """
        wanted = None if columns is None else list(dict.fromkeys([*columns, "accepted"]))
        tables = []
        for part in range(self.parts):  # each by itself: a copy of all rows may be more than fits
            table = self.read_part(part, wanted).replace_schema_metadata()
            if accepted is not None:
                table = table.filter(table["accepted"] if accepted else pc.invert(table["accepted"]))
            tables.append(table)
        table = pa.concat_tables(tables)
        return table.select(list(columns) if columns is not None else [c for c in table.column_names if c != INPUT])


def split(rows: Iterable[Row], stage: Stage, parts: int) -> list[list[Row]]:
    """Rows by part, in the order of their names."""
    found: list[list[Row]] = [[] for _ in range(parts)]
    for row in rows:
        found[part_of(str(row[stage.key]), parts)].append(row)
    for part in found:
        part.sort(key=lambda row: str(row[stage.key]))
    return found


def completed(table: pa.Table, stage: Stage) -> pa.Table:
    """A whole stage's table with all columns of its schema: what it leaves out is null, its rows are accepted.

    Raises:
        TypeError: it has a column that the stage does not declare, or one of another type.
    """
    if unknown := set(table.column_names) - set(stage.schema.names):
        raise TypeError(f"stage {stage.name} gave a column {min(unknown)!r} that it does not declare")
    given = {"accepted": pa.scalar(True), INPUT: pa.scalar(bytes(16), pa.binary(16))}
    columns = []
    for one in stage.schema:
        if one.name in table.column_names:
            columns.append(table[one.name])
        elif one.name in given:
            columns.append(pa.repeat(given[one.name], len(table)))
        else:
            columns.append(pa.nulls(len(table), one.type))
    return pa.table(columns, schema=stage.schema)


def split_table(table: pa.Table, stage: Stage, parts: int) -> Iterator[pa.Table]:
    """`split` of rows that are a table of the stage's schema; no row becomes an object of Python."""
    batches = table.to_batches()  # piece by piece: the texts of all rows may be more than one array holds
    keys = (batch.column(0).to_pylist() for batch in batches)
    places = [np.array([part_of(key, parts) for key in some]) for some in keys]
    for part in range(parts):
        pieces = [batch.take(np.flatnonzero(place == part)) for batch, place in zip(batches, places, strict=True)]
        yield pa.Table.from_batches(pieces, stage.schema).combine_chunks().sort_by(stage.key)


def _content(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return hashlib.sha256(sink.getvalue()).hexdigest().encode()
