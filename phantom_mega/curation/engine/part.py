"""One part of a stage: join the inputs, reuse rows that are known, make the others, write the part.

Rows are kept in a journal as they are made, so that a killed process loses the row (or batch) it was at and no other. A
row that was in the making when a worker died is made alone from then on: it cannot take others with it. Everything a
row becomes passes through JSON, whether it was just made or comes from the journal: the part's bytes are the same.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from phantom_mega.curation.engine.stage import INPUT, Rejection, Row, Stage, verdict
from phantom_mega.curation.engine.tables import Table
from phantom_mega.errors import SetupError, UserError

MAX_CRASHES = 2  # of a worker at one row, in one run
CRASHED = "crashes the worker"
FAILED = "failed"
UNAVAILABLE = "model unavailable"  # of an endpoint that was down or overloaded
RETRIED = {CRASHED, FAILED, UNAVAILABLE}


@dataclass
class Summary:
    """What became of a part.

    Attributes:
        part: its number.
        rows: in it.
        accepted: of them.
        made: rows of the input that were not known yet.
        seconds: to make them.
        reasons: of rejected rows, with counts.
        failures: the first few reasons that are bugs or damaged data, for the log.
    """

    part: int
    rows: int = 0
    accepted: int = 0
    made: int = 0
    seconds: float = 0.0
    reasons: Counter = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


class PartRunner:
    """Makes parts of a stage; what the stage loads is loaded once, at the first row that needs it.

    Args:
        stage: to run.
        folder: of all stages' tables.
        parts: of each table.
        run: names this run; crashes are counted within one.
        retry: make rows again that failed: an endpoint was down, a model did not load, a disk was away.
    """

    def __init__(self, stage: Stage, folder: Path, parts: int, run: str, retry: bool = False):
        self.stage, self.run, self.retry = stage, run, retry
        self.table = Table(folder, stage.name, parts)
        self.inputs = {name: Table(folder, name, parts) for name in stage.inputs}
        self.digest = stage.digest()
        self._process: Callable | None = None

    def made_from(self, part: int) -> bytes:
        """Digest of all that a part depends on.

        Raises:
            UserError: an input is missing.
        """
        digest = hashlib.sha256(self.digest)
        for name, table in self.inputs.items():
            stamp = table.stamp(part)
            if stamp is None:
                raise UserError(f"stage {self.stage.name} needs stage {name}, which has not run")
            digest.update(stamp[1])
        return digest.hexdigest().encode()

    def is_done(self, part: int) -> bool:
        """Whether the part is there, made of what its inputs are now."""
        stamp = self.table.stamp(part)
        if stamp is None or stamp[0] != self.made_from(part):
            return False
        return not self.retry or not set(self.table.read_part(part, ["reason"])["reason"].to_pylist()) & RETRIED

    def remove_leftover(self, part: int) -> None:
        """Remove the journal of a part that is done: a run may be killed once the part is written, but before that."""
        self._journal(part).unlink(missing_ok=True)

    def _journal(self, part: int) -> Path:
        return self.table.folder / f".part-{part:05d}.journal"

    def __call__(self, part: int) -> Summary:
        """Make a part."""
        made_from, summary, started = self.made_from(part), Summary(part), time.monotonic()
        known = self._known(part)
        made: list[list[Row]] = []  # of each input row, in their order
        waiting: list[_Waiting] = []
        journal = Journal(self._journal(part), self.run)
        with journal:
            for row in self._joined(part):
                name = self._name(row)
                found = known.get(name, journal.known.get(name))
                made.append(list(found or ()))
                if found is None:
                    waiting.append(_Waiting(row, name, made[-1]))
                    summary.made += 1
                if len(waiting) == (self.stage.batch or 1):
                    self._make(waiting, journal, summary)
                    waiting = []
            self._make(waiting, journal, summary)
        rows = [row for found in made for row in found]
        rows.sort(key=lambda row: str(row.get(self.stage.key)))
        self.table.write(part, [decode(row) for row in rows], self.stage.schema, made_from)
        journal.remove()
        summary.seconds = time.monotonic() - started
        count(summary, rows)
        return summary

    def _known(self, part: int) -> dict[bytes, list[Row]]:
        """Rows of the part as it is, by the digest of what each was made from."""
        if self.table.stamp(part) is None:
            return {}
        known: dict[bytes, list[Row]] = {}
        table = self.table.read_part(part)
        if table.schema.names != self.stage.schema.names:
            return {}
        for row in table.to_pylist():
            if not (self.retry and row["reason"] in RETRIED):
                known.setdefault(row[INPUT], []).append(encode(row))
        return known

    def _joined(self, part: int) -> Iterator[Row]:
        tables = [table.accepted(part, self.stage.inputs[name]) for name, table in self.inputs.items()]
        first, *others = tables
        key = first.column_names[0]
        by_key = [{row[key]: row for row in table.to_pylist()} for table in others]
        for row in first.to_pylist():
            parts = [rows.get(row[key]) for rows in by_key]
            if all(one is not None for one in parts):
                for one in parts:
                    row |= one
                yield row

    def _name(self, row: Row) -> bytes:
        text = json.dumps(encode(row), sort_keys=True).encode()
        return hashlib.sha256(self.digest + text).digest()[:16]

    def _make(self, waiting: Sequence[_Waiting], journal: Journal, summary: Summary) -> None:
        """Fill in what the rows of a batch become."""
        together = [one for one in waiting if not journal.starts[one.name]]
        for group in [together] * bool(together) + [[one] for one in waiting if journal.starts[one.name]]:
            crashes = journal.starts[group[0].name]
            if crashes >= MAX_CRASHES:
                made = [[self._rejected(group[0].row, Rejection(CRASHED, crashes))]]
            else:
                journal.start(*(one.name for one in group))
                if self._process is None:  # what is missing here is a mistake of the settings, not of the row
                    self._process = self.stage.open(self.stage.settings)
                made = self._processed([one.row for one in group], summary)
            for one, rows in zip(group, made, strict=True):
                one.made += [encode(row | {INPUT: one.name}) for row in rows]
            journal.done({one.name: one.made for one in group})

    def _processed(self, rows: list[Row], summary: Summary) -> list[list[Row]]:
        """What each of some rows becomes.

        Raises:
            SetupError: every other row would fail alike.
        """
        if len(rows) > 1:
            try:
                return [[_accepted(one) for one in made] for made in self._process_batch(rows)]
            except (SetupError, MemoryError):
                raise
            except Exception:  # one row's, most often: it is found below
                pass
        return [self._alone(row, summary) for row in rows]

    def _process_batch(self, rows: list[Row]) -> list[list[Row]]:
        made = list(self._process(rows))
        if len(made) != len(rows):
            raise TypeError(f"stage {self.stage.name} made {len(made)} results of {len(rows)} rows")
        return made

    def _alone(self, row: Row, summary: Summary) -> list[Row]:
        try:
            made = self._process(row) if self.stage.batch is None else self._process_batch([row])[0]
            return [_accepted(one) for one in made]
        except Rejection as rejection:
            return [self._rejected(row, rejection)]
        except (SetupError, MemoryError):
            raise
        except UserError as error:
            return [self._rejected(row, Rejection(FAILED, None, str(error)))]
        except Exception as error:  # one row's, whatever a decoder or a model does with it
            summary.failures.append("".join(traceback.format_exception(error, limit=-3))[-1500:])
            return [self._rejected(row, Rejection(FAILED, None, f"{type(error).__name__}: {error}"[:500]))]

    def _rejected(self, row: Row, rejection: Rejection) -> Row:
        names = set(self.stage.schema.names)
        known = {column: value for column, value in row.items() if column in names} | rejection.values
        known.setdefault(self.stage.key, next(iter(row.values())))
        return verdict(known, rejection.reason, rejection.score, rejection.detail)


@dataclass
class _Waiting:
    """An input row, its name, and the list that takes what it becomes."""

    row: Row
    name: bytes
    made: list[Row]


def _accepted(row: Row) -> Row:
    return {"reason": None, "score": None, "detail": None, "accepted": True} | row


class Journal:
    """Rows as they are made, a line each; a line that broke off is passed over.

    Args:
        path: of the file, beside the part.
        run: whose crashes count.
    """

    def __init__(self, path: Path, run: str):
        self.path, self.run = path, run
        self.known: dict[bytes, list[Row]] = {}
        self.starts: Counter = Counter()
        self._file = None
        with_break = b""
        for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else []:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            name = bytes.fromhex(entry["of"])
            if "rows" in entry:
                self.known[name] = entry["rows"]
                self.starts.pop(name, None)
            elif entry["run"] == run:
                self.starts[name] += 1
            with_break = line[-1:]
        self._broken = bool(with_break) and with_break != b"\n"

    def __enter__(self) -> Journal:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab")
        if self._broken:
            self._file.write(b"\n")
        return self

    def __exit__(self, *error) -> None:
        self._file.close()

    def start(self, *names: bytes) -> None:
        """Rows are begun."""
        self._put([{"of": name.hex(), "run": self.run} for name in names])

    def done(self, made: dict[bytes, list[Row]]) -> None:
        """Input rows have become others."""
        self._put([{"of": name.hex(), "rows": rows} for name, rows in made.items()])

    def remove(self) -> None:
        """The part is written."""
        self.path.unlink(missing_ok=True)

    def _put(self, entries: list[dict]) -> None:
        self._file.write(b"".join(json.dumps(entry).encode() + b"\n" for entry in entries))
        self._file.flush()
        os.fsync(self._file.fileno())


def count(summary: Summary, rows: list[Row]) -> None:
    """Fill in a summary's counts."""
    summary.rows = len(rows)
    summary.accepted = sum(bool(row["accepted"]) for row in rows)
    summary.reasons = Counter(row["reason"] for row in rows if not row["accepted"])


def encode(value):
    """A row as JSON holds it: numbers of numpy as Python's, bytes as base64."""
    if isinstance(value, dict):
        return {key: encode(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(one) for one in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    return value


def decode(value):
    """The inverse of `encode`."""
    if isinstance(value, dict):
        if value.keys() == {"base64"}:
            return base64.b64decode(value["base64"])
        return {key: decode(one) for key, one in value.items()}
    if isinstance(value, list):
        return [decode(one) for one in value]
    return value
