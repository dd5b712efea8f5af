"""What a stage is: from rows to rows, by a pure function of a row and of settings."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from phantom_mega.errors import UserError

Row = dict[str, Any]
# Every table ends with these: what became of a row, in words that a report can count, and what was measured.
VERDICT = (
    pa.field("accepted", pa.bool_(), nullable=False),
    pa.field("reason", pa.string()),
    pa.field("score", pa.float64()),
    pa.field("detail", pa.string()),
)
INPUT = "_input"  # digest of what a row was made from


class Rejection(Exception):  # noqa: N818 (no error: most of a web crawl is rejected)
    """A row goes no further.

    Args:
        reason: a few fixed words, the same for all rows rejected for it.
        score: what was measured, where a threshold decided.
        detail: what is particular to this row.
        values: columns of the row that are known nevertheless.
    """

    def __init__(self, reason: str, score: float | None = None, detail: str | None = None, **values: Any):
        super().__init__(reason if detail is None else f"{reason}: {detail}")
        self.reason, self.score, self.detail, self.values = reason, score, detail, values


@dataclass(frozen=True)
class Stage:
    """One step from tables to a table.

    Attributes:
        name: of the stage, its folder and its table.
        columns: of its rows, without the verdict; the first one names a row and is unique among accepted rows.
        inputs: columns that it reads, by stage. Accepted rows are joined by the first column of each, which must be the
            same. A stage without inputs makes its rows by itself (`source`).
        settings: dataclass or plain values; part of what the results depend on.
        open: module-level function of the settings that loads what is needed (models) and returns the function of a
            row: from an input row to output rows, each a dict that may leave out columns and may hold a verdict
            (accepted if it holds none). It may raise `Rejection`. For `whole` stages: from the input tables by name to
            all output rows, or to a table of them, which may leave out columns too. With a `batch`: from a list of
            input rows to a list of what each becomes.
        batch: input rows that the function takes at once, at most. Where it raises anything, it is given them one by
            one, so that a bad row costs the others nothing but time.
        whole: sees all rows at once, in the calling process.
        source: the rows to start from, for a stage without inputs.
        files: whose bytes belong to the settings (annotations, lists).
        version: raised when the code changes what comes out.
        num_cpus, num_gpus: of one worker.
        concurrency: workers at most; None takes as many as find CPUs and GPUs. Endpoints want many and no CPU.
    """

    name: str
    columns: tuple[pa.Field, ...]
    inputs: Mapping[str, tuple[str, ...]]
    settings: Any
    open: Callable[[Any], Callable]
    batch: int | None = None
    whole: bool = False
    source: Callable[[Any], Iterable[Row]] | None = None
    files: tuple[Path, ...] = ()
    version: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    concurrency: int | None = None

    @property
    def key(self) -> str:
        """The column that names a row."""
        return self.columns[0].name

    @functools.cached_property
    def schema(self) -> pa.Schema:
        """Of its table."""
        return pa.schema([*self.columns, *VERDICT, pa.field(INPUT, pa.binary(16), nullable=False)])

    def digest(self) -> bytes:
        """Of all that its results depend on beside the input rows.

        Raises:
            UserError: one of `files` cannot be read.
        """
        settings = dataclasses.asdict(self.settings) if dataclasses.is_dataclass(self.settings) else self.settings
        about = {"name": self.name, "version": self.version, "settings": settings, "columns": str(self.schema)}
        digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
        for path in self.files:
            try:
                digest.update(hashlib.sha256(Path(path).read_bytes()).digest())
            except OSError as error:
                raise UserError(f"stage {self.name}: {path} cannot be read: {error.strerror or error}") from None
        return digest.digest()


def verdict(row: Row, reason: str | None, score: float | None = None, detail: str | None = None) -> Row:
    """A row with what became of it; no reason accepts it."""
    return {**row, "accepted": reason is None, "reason": reason, "score": score, "detail": detail}
