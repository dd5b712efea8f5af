"""Tables of stages: parquet files, a row's part given by its name, so that new videos leave other parts as they are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

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
        table = pa.Table.from_pylist(list(rows), schema=schema)
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
        tables = [self.read_part(part, wanted) for part in range(self.parts)]
        table = pa.concat_tables(one.replace_schema_metadata() for one in tables)
        if accepted is not None:
            table = table.filter(table["accepted"] if accepted else pc.invert(table["accepted"]))
        return table.select(list(columns) if columns is not None else [c for c in table.column_names if c != INPUT])


def split(rows: Iterable[Row], stage: Stage, parts: int) -> list[list[Row]]:
    """Rows by part, in the order of their names."""
    found: list[list[Row]] = [[] for _ in range(parts)]
    for row in rows:
        found[part_of(str(row[stage.key]), parts)].append(row)
    for part in found:
        part.sort(key=lambda row: str(row[stage.key]))
    return found


def _content(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return hashlib.sha256(sink.getvalue()).hexdigest().encode()
