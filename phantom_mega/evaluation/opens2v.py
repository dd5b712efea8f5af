"""OpenS2V-Eval's scores (arXiv 2505.20292): its result files, its normalisation, its total, a row of its leaderboard.

Version 1.1 of the benchmark (motion is smoothness and amplitude), as the repository PKU-YuanGroup/OpenS2V-Nexus
publishes it: result files, ranges and weights of eval/merge_result.py, columns of leaderboard/file_v1.1/*.csv.

What is published averages over whatever results are there: a case that failed, and a video in which no subject was
found (NexusScore 0), count for nothing. `summarise` counts them as zero and names them; `summarise_as_published`
gives numbers to set beside published ones.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from phantom_mega.errors import UserError
from phantom_mega.evaluation.statistics import shortened
from phantom_mega.files import read_json_object, whole_file, write_json
from phantom_mega.generation.cases import Case

SPLITS = ("Open-Domain", "Human-Domain", "Single-Domain")
Results = dict[str, dict[str, float]]  # case id -> component -> the metric's own number
_FACES = ("singlehuman", "singleface", "faceobj", "humanobj")  # parts of ids whose cases have one person with a face
_PEOPLE = ("man", "woman")


@dataclass(frozen=True)
class Component:
    """One part of the total score.

    Attributes:
        column: of the leaderboard.
        files: result files that hold it, without `.json`; several are averaged.
        key: of the number in a file's entry; "" where the entry is the number.
        low, high: the metric's numbers that become 0 and 1.
        bound: how a number is brought between them: `clip` to both, `abs` (its size, at most `high`), or `most` (at
            most `high`; may be below `low`).
        weight: in the total of Open-Domain and Single-Domain.
        human_weight: in the total of Human-Domain; 0 means that the split has no such column.
    """

    column: str
    files: tuple[str, ...]
    key: str
    low: float
    high: float
    bound: str
    weight: float
    human_weight: float


COMPONENTS = {
    "aes_score": Component("Aesthetics", ("aesthetic_score",), "aes_score", 4, 7, "clip", 0.16, 0.18),
    "motion_smoothness": Component(
        "MotionSmoothness", ("motion_smoothness",), "motion_smoothness", 0, 1, "abs", 0.06, 0.09
    ),
    "motion_amplitude": Component("MotionAmplitude", ("motion_amplitude",), "motion_fb", 0, 1, "abs", 0.02, 0.03),
    "facesim_cur": Component("FaceSim", ("facesim",), "cur_score", 0, 1, "most", 0.20, 0.25),
    "gme_score": Component("GmeScore", ("gmescore",), "gme_score", 0, 1, "most", 0.12, 0.15),
    "nexus_score": Component("NexusScore", ("nexusscore",), "nexus_score", 0, 0.05, "most", 0.20, 0),
    "natural_score": Component(
        "NaturalScore", tuple(f"naturalscore_{i}" for i in (1, 2, 3)), "", 1, 5, "clip", 0.24, 0.30
    ),
}


@dataclass(frozen=True)
class Summary:
    """Scores of one method on one split.

    Attributes:
        split: one of `SPLITS`.
        total: the weighted total, 1 is best.
        components: normalised, by name, 1 is best.
        counted: cases that each component averages over.
        missing: cases that count as zero, by component.
    """

    split: str
    total: float
    components: dict[str, float]
    counted: dict[str, int]
    missing: dict[str, tuple[str, ...]] = field(default_factory=dict)


def weights(split: str) -> dict[str, float]:
    """Weight of each component in a split's total; they add up to 1.

    Raises:
        UserError: there is no such split.
    """
    if split not in SPLITS:
        raise UserError(f"OpenS2V-Eval has no split {split!r}; it has {', '.join(SPLITS)}")
    human = split == "Human-Domain"
    found = {name: part.human_weight if human else part.weight for name, part in COMPONENTS.items()}
    return {name: weight for name, weight in found.items() if weight}


def bounded(name: str, value: float) -> float:
    """A metric's own number as it enters the average."""
    part = COMPONENTS[name]
    value = min(abs(value) if part.bound == "abs" else value, part.high)
    return max(value, part.low) if part.bound == "clip" else value


def normalised(name: str, value: float) -> float:
    """A metric's own number, or an average of them, on the scale of the total: `low` becomes 0, `high` 1."""
    part = COMPONENTS[name]
    return (value - part.low) / (part.high - part.low)


def total_score(components: Mapping[str, float], split: str) -> float:
    """The weighted total of normalised components.

    Args:
        components: every component of the split.
        split: one of `SPLITS`.
    """
    return sum(weight * components[name] for name, weight in weights(split).items())


def applies(name: str, case: Case) -> bool:
    """Whether a component is measured on a case, by the case's id and labels as the published scripts go.

    FaceSim needs one person with a face (ids with `singlehuman`, `singleface`, `faceobj`, `humanobj`); NexusScore a
    subject besides the people of cases whose id holds `face`.
    """
    if name == "facesim_cur":
        return any(part in case.id for part in _FACES)
    if name == "nexus_score" and "face" in case.id:
        return any(label.lower() not in _PEOPLE for label in case.labels)
    return True


def summarise(results: Results, cases: Sequence[Case], split: str) -> Summary:
    """Scores in which every case counts: one without a result, or in which nothing was found, as zero.

    Args:
        results: each case's components, as `read_results` gives them.
        cases: all cases of the split.
        split: one of `SPLITS`.

    Raises:
        UserError: there is no such split, no case to measure a component on, or a result of a case that is not there.
    """
    unknown = sorted(results.keys() - {case.id for case in cases})
    if unknown:
        raise UserError(f"{len(unknown)} results are of no case of the file: {shortened(unknown)}")
    components, counted, missing = {}, {}, {}
    for name in weights(split):
        ids = [case.id for case in cases if applies(name, case)]
        if not ids:
            raise UserError(f"{split}: none of the {len(cases)} cases is one that {COMPONENTS[name].column} measures")
        values = {id: results[id][name] for id in ids if name in results.get(id, {})}
        absent = tuple(id for id in ids if id not in values or (name == "nexus_score" and values[id] == 0))
        found = sum(normalised(name, bounded(name, values[id])) for id in ids if id not in absent)
        components[name], counted[name] = found / len(ids), len(ids)
        if absent:
            missing[name] = absent
    return Summary(split, total_score(components, split), components, counted, missing)


def summarise_as_published(results: Results, split: str) -> Summary:
    """Scores as the benchmark's own script makes them: averages of the results that are there.

    NexusScores of 0 are left out. A component without any result is 0 before its range is taken off, as there:
    (0 - low) / (high - low).

    Args:
        results: each case's components, as `read_results` gives them.
        split: one of `SPLITS`.

    Raises:
        UserError: there is no such split.
    """
    components, counted = {}, {}
    for name in weights(split):
        values = [bounded(name, found[name]) for found in results.values() if name in found]
        if name == "nexus_score":
            values = [value for value in values if value != 0]
        components[name] = normalised(name, sum(values) / len(values) if values else 0.0)
        counted[name] = len(values)
    return Summary(split, total_score(components, split), components, counted)


def read_results(folder: Path) -> Results:
    """The result files of a method: `aesthetic_score.json`, `facesim.json`, ... `naturalscore_1.json` to `_3.json`.

    An entry that a script marked as failed (`"error"`) is no result. Other files of the folder are left alone.

    Raises:
        UserError: the folder has none of the files, or one is not of the format; names it.
    """
    lists: dict[str, dict[str, list[float]]] = {}
    seen = 0
    for name, part in COMPONENTS.items():
        for path in (folder / f"{file}.json" for file in part.files):
            if not path.is_file():
                continue
            seen += 1
            for id, value in _read_entries(path, part.key).items():
                lists.setdefault(id, {}).setdefault(name, []).append(value)
    if not seen:
        names = ", ".join(f"{file}.json" for part in COMPONENTS.values() for file in part.files)
        raise UserError(f"{folder} holds no result of OpenS2V-Eval; its files are {names}")
    return {id: {name: sum(found) / len(found) for name, found in parts.items()} for id, parts in lists.items()}


def _read_entries(path: Path, key: str) -> dict[str, float]:
    entries = read_json_object(path)
    found = {}
    for id, entry in entries.items():
        value = entry.get(key) if isinstance(entry, dict) and key else entry
        if value is None or value == "error":
            continue
        try:
            if isinstance(value, bool):
                raise TypeError
            found[id] = float(value)  # the judge's answers are texts
        except (TypeError, ValueError):
            raise UserError(f"{path}, case {id!r}: {json.dumps(value)} is no number") from None
        if not math.isfinite(found[id]):
            raise UserError(f"{path}, case {id!r}: {value} is not a finite number")
    return found


def write_results(results: Results, folder: Path) -> list[Path]:
    """Write results as the benchmark's scripts do, one file per component; returns the files.

    NaturalScore goes to `naturalscore_1.json`, as one answer of the judge, and its other two files are removed: they
    would be averaged with it.

    Args:
        results: the components of each case; components that no case has get no file.
        folder: made where it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, part in COMPONENTS.items():
        values = {id: found[name] for id, found in results.items() if name in found}
        if not values:
            continue
        for stale in part.files[1:]:
            (folder / f"{stale}.json").unlink(missing_ok=True)
        entries = {id: {part.key: value} if part.key else value for id, value in values.items()}
        written.append(write_json(entries, folder / f"{part.files[0]}.json"))
    return written


def submission(summary: Summary) -> dict[str, float]:
    """What the leaderboard takes as an upload: the total and the components, 1 is best."""
    return {"total_score": summary.total} | summary.components


def write_submission(summary: Summary, path: Path) -> Path:
    """Write `submission` as JSON."""
    return write_json(submission(summary), path)


def read_submission(path: Path, split: str) -> dict[str, float]:
    """An upload of the leaderboard: `total_score` and every component of the split.

    Raises:
        UserError: it cannot be read, or one is not there.
    """
    found = _read_entries(path, "")
    names = ("total_score", *weights(split))
    lacking = [name for name in names if name not in found]
    if lacking:
        raise UserError(f"{path} is no submission to {split}: it has no {', '.join(lacking)}")
    return {name: found[name] for name in names}


def leaderboard_columns(split: str) -> list[str]:
    """Columns of a split's leaderboard, in its order."""
    scores = ["TotalScore", *(COMPONENTS[name].column for name in weights(split))]
    return ["Model", "Venue", "Evaluated by", *(f"{score}↑" for score in scores)]


def leaderboard_row(
    scores: Mapping[str, float], split: str, model: str, venue: str = "Open-Source", team: str = "User Upload"
) -> dict[str, str]:
    """A row of a split's leaderboard: percent with two digits.

    Args:
        scores: `submission` of a summary.
        split: one of `SPLITS`.
        model: name, or `[name](address)`.
        venue: `Open-Source` or `Closed-Source`.
        team: who evaluated.
    """
    values = [f"{scores[name] * 100:.2f}%" for name in ("total_score", *weights(split))]
    return dict(zip(leaderboard_columns(split), (model, venue, team, *values), strict=True))


def row_scores(row: Mapping[str, str], split: str) -> dict[str, float]:
    """A leaderboard's row as numbers, 1 is best: the inverse of `leaderboard_row`.

    Raises:
        UserError: it lacks a column, or one is no percentage.
    """
    found = {}
    for name, column in zip(("total_score", *weights(split)), leaderboard_columns(split)[3:], strict=True):
        try:
            found[name] = float(row[column].removesuffix("%")) / 100
        except (KeyError, ValueError, AttributeError):
            reason = f"{column} is {row.get(column)!r}, no percentage"
            raise UserError(f"row {row.get('Model')!r} of {split}: {reason}") from None
    return found


def read_leaderboard(path: Path, split: str) -> list[dict[str, str]]:
    """Rows of a leaderboard's CSV file.

    Raises:
        UserError: it cannot be read, or has other columns.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            columns, rows = reader.fieldnames or [], list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if columns != leaderboard_columns(split):
        raise UserError(f"{path} is no leaderboard of {split}: its columns are {', '.join(columns) or 'none'}")
    return rows


def write_leaderboard(rows: Iterable[Mapping[str, str]], split: str, path: Path) -> Path:
    """Write rows as a leaderboard's CSV file."""
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, leaderboard_columns(split), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path
