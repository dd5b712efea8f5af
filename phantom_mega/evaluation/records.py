"""What was measured, on disk: a line for each (metric, video), appended whole, found again by a digest.

`<metric>.<rank>.jsonl`, one file for each process, so that lines never mix. A digest names all that decides a value:
the metric's settings, the video's bytes, the case. What changed is thus measured again, and nothing else; a line that a
kill tore is none.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from phantom_mega.errors import UserError
from phantom_mega.evaluation.metric import Measured
from phantom_mega.evaluation.registry import METRICS

FORMAT = 1  # of a line; another number measures everything again


@dataclass(frozen=True)
class Record:
    """A line.

    Attributes:
        digest: of `digest`.
        case: its id, for readers of the file.
        measured: what the metric says; None where it failed.
        failed: why; "" where it did not.
    """

    digest: str
    case: str
    measured: Measured | None
    failed: str = ""


def digest(metric: str, settings: object, video: str, case: str) -> str:
    """Of all that decides a value.

    Args:
        metric: its name.
        settings: of the metric.
        video: digest of the file.
        case: digest of the case.
    """
    content = json.dumps([FORMAT, metric, asdict(settings), video, case], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:24]


def read_records(folder: Path) -> dict[str, dict[str, Record]]:
    """Records of each metric by their digests; one that was measured goes before one that failed.

    Raises:
        UserError: a file cannot be read.
    """
    found: dict[str, dict[str, Record]] = {name: {} for name in METRICS}
    for path in sorted(folder.glob("*.jsonl")):
        known = found.get(path.name.split(".")[0])
        if known is None:
            continue
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        for line in lines:
            record = _parsed(line)
            if record and (record.measured or record.digest not in known):
                known[record.digest] = record
    return found


def _parsed(line: bytes) -> Record | None:
    try:
        raw = json.loads(line)
        if raw.get("failed"):
            return Record(raw["digest"], raw["case"], None, str(raw["failed"]))
        value, detail = float(raw["value"]), {str(k): float(v) for k, v in raw["detail"].items()}
        if not math.isfinite(value):
            return None
        return Record(raw["digest"], raw["case"], Measured(value, str(raw["missing"]), detail))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # torn by a kill in the middle of a write


class RecordWriter:
    """Appends records of a process.

    Args:
        folder: made where it is not there.
        rank: of the process.
    """

    def __init__(self, folder: Path, rank: int):
        self.folder, self.rank = folder, rank
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder} cannot be made: {error.strerror}") from None

    def write(self, metric: str, record: Record) -> None:
        """Append a line.

        Raises:
            UserError: the disk is full, or the file cannot be written.
        """
        content = {"digest": record.digest, "case": record.case}
        if record.measured is None:
            content["failed"] = record.failed
        else:
            content |= asdict(record.measured)
        path = self.folder / f"{metric}.{self.rank}.jsonl"
        line = json.dumps(content, allow_nan=False, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        try:
            with path.open("ab+", buffering=0) as file:
                if file.seek(0, 2):
                    file.seek(-1, 2)
                    line = line if file.read(1) == b"\n" else b"\n" + line  # after a torn line
                if file.write(line) != len(line):
                    raise OSError(28, "the disk is full")
        except OSError as error:
            raise UserError(f"{path} could not be written: {error.strerror}") from None
