"""What a report reads: tables part by part and column by column, so that a million clips take little memory."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from phantom_mega.curation.engine.stage import Stage
from phantom_mega.curation.engine.tables import Table
from phantom_mega.errors import UserError

_NOT_SHOWN = re.compile(r"[\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]")  # half pairs; what turns text around
_USER_INFO = re.compile(r"(?<=://)[^/\s@]+@")


def shown(value: object, most: int = 300) -> str:
    """Text of anybody's as it can be shown: one line, without control characters, not endless, no password of a URL."""
    text = _NOT_SHOWN.sub("\ufffd", _USER_INFO.sub("…@", str(value)[: 4 * most]))
    text = "".join("\ufffd" if unicodedata.category(one) == "Cc" and not one.isspace() else one for one in text)
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


class Tables:
    """The tables of the stages that have run.

    Args:
        folder: of all tables.
        stages: in their order.
        parts: of each table.

    Attributes:
        there: stages that have run.
        missing: stage -> why its table is left out.

    Raises:
        UserError: a table is damaged.
    """

    def __init__(self, folder: Path, stages: Sequence[Stage], parts: int):
        self.parts, self.keys = parts, {stage.name: stage.key for stage in stages}
        self.there: dict[str, Table] = {}
        self.missing: dict[str, str] = {}
        self._columns: dict[str, set[str]] = {}
        for stage in stages:
            table = Table(folder, stage.name, parts)
            present = sum(table.path(part).is_file() for part in range(parts))
            if present == parts:
                self.there[stage.name] = table
                self._columns[stage.name] = set(_metadata(table, 0).schema.to_arrow_schema().names)
            else:
                self.missing[stage.name] = f"{present:,} of {parts:,} parts are there" if present else "has not run"

    def has(self, stage: str, *columns: str) -> bool:
        """Whether a stage has run and its table has these columns."""
        return stage in self.there and set(columns) <= self._columns[stage]

    def read(self, stage: str, columns: Sequence[str], accepted: bool | None = None) -> Iterator[pa.Table]:
        """Columns of each part, in order.

        Args:
            stage: that has run.
            columns: of the table.
            accepted: keep accepted (True) or rejected rows (False) alone.
        """
        for part in range(self.parts):
            yield self.read_part(stage, part, columns, accepted)

    def read_part(self, stage: str, part: int, columns: Sequence[str], accepted: bool | None = None) -> pa.Table:
        """Columns of one part."""
        if accepted is None:
            return self.there[stage].read_part(part, columns)
        table = self.there[stage].read_part(part, list(dict.fromkeys([*columns, "accepted"])))
        return table.filter(pc.equal(table["accepted"], accepted))

    def rows(self, stage: str, part: int) -> int:
        """Number of rows of a part, from the file's end alone."""
        return _metadata(self.there[stage], part).num_rows


def _metadata(table: Table, part: int) -> pq.FileMetaData:
    try:
        return pq.read_metadata(table.path(part))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{table.path(part)} cannot be read ({error}); run stage {table.stage} again") from None


def flat(column: pa.ChunkedArray, field: str) -> pa.ChunkedArray:
    """One field of all entries of a list of structs."""
    values = pc.list_flatten(column)
    return pc.struct_field(values, [field])
