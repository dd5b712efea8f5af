"""How many cross pairs show one and the same subject, by labels of identity that somebody gave by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from phantom_mega.curation.report.reading import Tables

# Reasons of candidates below the lower cuts: a face decides where both are known, the image elsewhere.
TOO_DIFFERENT, FACE_DIFFERS = "too different", "face differs"
CONFIDENCE = 0.95


@dataclass(frozen=True)
class LabelledPair:
    """A cross pair, or a candidate for one, both of whose sides have a label.

    Attributes:
        target: identity of the clip's subject.
        reference: identity of who or what the crop shows.
        similarity, face: of the images and of the faces; NaN where unknown.
        reason: why it was rejected; None if it was accepted.
    """

    target: str
    reference: str
    similarity: float
    face: float = float("nan")
    reason: str | None = None

    @property
    def right(self) -> bool:
        """Whether both are the same."""
        return self.target == self.reference


@dataclass(frozen=True)
class Precision:
    """Share of right pairs among those that were judged.

    Attributes:
        right, total: pairs.
        low, high: Wilson interval of the share.
    """

    right: int
    total: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share; NaN of nothing."""
        return self.right / self.total if self.total else float("nan")

    def line(self) -> str:
        """For a person."""
        if not self.total:
            return "no accepted cross pair has labels on both sides"
        return (
            f"{self.right:,} of {self.total:,} cross pairs with labels by hand are right: precision {self.value:.3f} "
            f"({CONFIDENCE:.0%} interval {self.low:.3f} to {self.high:.3f})"
        )


@dataclass(frozen=True)
class Curve:
    """Precision and recall if the lower cut was moved.

    Attributes:
        cut: float [n], similarity at least, falling.
        precision: float [n], of the pairs from there up.
        recall: float [n], of the right ones among all recorded candidates.
    """

    cut: np.ndarray
    precision: np.ndarray
    recall: np.ndarray


def wilson(right: int, total: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927); (0, 1) of nothing."""
    from scipy.stats import binomtest  # slow to import

    if not total:
        return 0.0, 1.0
    interval = binomtest(right, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def precision_of(pairs: Iterable[LabelledPair]) -> Precision:
    """Of accepted pairs."""
    accepted = [pair for pair in pairs if pair.reason is None]
    right = sum(pair.right for pair in accepted)
    return Precision(right, len(accepted), *wilson(right, len(accepted)))


def curve_of(pairs: Iterable[LabelledPair], faces: bool = False) -> Curve:
    """Over a lower cut: of accepted pairs and of those that were rejected by this cut alone, all else as it is.

    Args:
        pairs: candidates.
        faces: the cut of faces, of pairs whose faces are known, instead of the images' cut, of the others.
    """
    reasons = (None, FACE_DIFFERS if faces else TOO_DIFFERENT)
    judged = [pair for pair in pairs if pair.reason in reasons and np.isfinite(pair.face) == faces]
    values = np.array([pair.face if faces else pair.similarity for pair in judged], float)
    right = np.array([pair.right for pair in judged], float)[np.isfinite(values)]
    values = values[np.isfinite(values)]
    order = np.argsort(-values, kind="stable")
    values, hits, count = values[order], np.cumsum(right[order]), np.arange(1, len(values) + 1)
    last = np.flatnonzero(np.append(np.diff(values) != 0, True)) if len(values) else np.zeros(0, int)
    return Curve(values[last], hits[last] / count[last], hits[last] / max(right.sum(), 1))


def confusions(pairs: Iterable[LabelledPair]) -> list[tuple[str, str, int]]:
    """(identity of the target, of the reference, how often) of wrong accepted pairs, the most frequent first."""
    wrong = Counter((pair.target, pair.reference) for pair in pairs if pair.reason is None and not pair.right)
    return [(*names, count) for names, count in sorted(wrong.items(), key=lambda item: (-item[1], item[0]))]


def label_pairs(
    pairs: pa.Table, subjects: Mapping[tuple[str, int], str], crops: Mapping[str, tuple[str, int]]
) -> list[LabelledPair]:
    """The cross pairs both of whose sides have a label.

    Args:
        pairs: rows with clip_id, subject, crop_id, kind, similarity, face_similarity, accepted, reason.
        subjects: (clip, number of its subject) -> identity.
        crops: crop -> (clip, number of its subject).
    """
    found = []
    for row in pairs.to_pylist():
        target = subjects.get((row["clip_id"], row["subject"]))
        reference = subjects.get(crops.get(row["crop_id"], ("", -1)))
        if row["kind"] != "in" and target and reference:
            similar, face = (
                float("nan") if row[name] is None else row[name] for name in ("similarity", "face_similarity")
            )
            reason = None if row["accepted"] else row["reason"] or "no reason given"
            found.append(LabelledPair(target, reference, similar, face, reason))
    return found


def read_labels(tables: Tables) -> list[LabelledPair] | None:
    """Labelled pairs of tables; None where a table is missing or nobody gave a label.

    What is without a label is left out as it is read: labels by hand are few.
    """
    columns = ["clip_id", "subject", "crop_id", "kind", "similarity", "face_similarity", "accepted", "reason"]
    if not (tables.has("subjects") and tables.has("crops") and tables.has("pairs", *columns)):
        return None
    subjects: dict[tuple[str, int], str] = {}
    for part in tables.read("subjects", ["clip_id", "subjects"], True):
        for row in part.to_pylist():
            for number, subject in enumerate(row["subjects"] or ()):
                if subject and subject["identity"]:
                    subjects[row["clip_id"], number] = subject["identity"]
    if not subjects:
        return None
    clips = pa.array(sorted({clip for clip, _ in subjects}))
    crops: dict[str, tuple[str, int]] = {}
    for part in tables.read("crops", ["crop_id", "clip_id", "subject"], True):
        for row in part.filter(pc.is_in(part["clip_id"], value_set=clips)).to_pylist():
            if (row["clip_id"], row["subject"]) in subjects:
                crops[row["crop_id"]] = (row["clip_id"], row["subject"])
    known, found = pa.array(list(crops), pa.string()), []
    for part in tables.read("pairs", columns):
        both = pc.and_(pc.is_in(part["clip_id"], value_set=clips), pc.is_in(part["crop_id"], value_set=known))
        found += label_pairs(part.filter(both), subjects, crops)
    return found
