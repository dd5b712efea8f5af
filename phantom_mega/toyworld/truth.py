"""The truth of a toy data set, kept beside its index: what every clip and every reference was drawn from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from phantom_mega.errors import UserError
from phantom_mega.toyworld.samples import ToySample
from phantom_mega.toyworld.scenes import Actor, Scene
from phantom_mega.toyworld.subjects import Subject

TRUTH_NAME = "truth.parquet"
_SCHEMA = pa.schema([("key", pa.string()), ("truth", pa.string())])


@dataclass(frozen=True)
class TrueReference:
    """Where a stored reference was cut from: `render(scene, ...)[frame]` inside the box (x0, y0, x1, y1)."""

    subject: Subject
    scene: Scene
    frame: int
    frames: int
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Truth:
    """What a stored sample was drawn from.

    Attributes:
        scene: of the clip; `render(scene, frames, height, width)` gives it back exactly.
        frames, height, width: of the clip.
        kind, style: of the references, of the caption.
        references: in the actors' order.
    """

    scene: Scene
    frames: int
    height: int
    width: int
    kind: str
    style: str
    references: tuple[TrueReference, ...]


def truth_of(sample: ToySample, frames: int, height: int, width: int, style: str) -> Truth:
    """The truth of a sample whose clip has this size."""
    references = tuple(
        TrueReference(
            reference.subject, reference.scene, reference.frame, frames if sample.kind == "in" else 1, reference.box
        )
        for reference in sample.references
    )
    return Truth(sample.scene, frames, height, width, sample.kind, style, references)


def write_truth(path: Path, truths: Iterable[tuple[str, Truth]]) -> None:
    """Write (key, truth) pairs as a table of two columns: the key, and JSON that any language reads."""
    rows = [{"key": key, "truth": json.dumps(dataclasses.asdict(truth))} for key, truth in truths]
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), path)


def read_truth(folder: Path) -> dict[str, Truth]:
    """The truth of every sample of a data set, by key.

    Args:
        folder: of one split.

    Raises:
        UserError: the folder holds none, or another program's.
    """
    path = folder / TRUTH_NAME
    try:
        table = pq.read_table(path, columns=_SCHEMA.names).to_pylist()
        return {row["key"]: _truth(json.loads(row["truth"])) for row in table}
    except FileNotFoundError:
        raise UserError(f"there is no {path}; tools/make_toyworld.py writes it") from None
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); make the data set again") from None


def _truth(data: dict) -> Truth:
    references = tuple(
        TrueReference(
            _subject(entry["subject"]), _scene(entry["scene"]), entry["frame"], entry["frames"], tuple(entry["box"])
        )
        for entry in data["references"]
    )
    return Truth(**data | {"scene": _scene(data["scene"]), "references": references})


def _scene(data: dict) -> Scene:
    actors = tuple(
        Actor(**entry | {"subject": _subject(entry["subject"]), "start": tuple(entry["start"])})
        for entry in data["actors"]
    )
    return Scene(**data | {"actors": actors})


def _subject(data: dict) -> Subject:
    return Subject(**data | {"body": tuple(data["body"]), "accent": tuple(data["accent"])})
