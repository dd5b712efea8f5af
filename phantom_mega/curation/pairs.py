"""Stage `pairs`: which crops of other shots stand for a clip's subjects (paper 3.1), by thresholds and caps alone.

A reference must show the same subject, but not the same picture: from near duplicates a model learns to copy and paste.
All candidates are columns of arrays, for a million subjects have tens of millions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from phantom_mega.curation.categories import head_of
from phantom_mega.curation.columns import fields_of
from phantom_mega.curation.engine.stage import Stage
from phantom_mega.curation.neighbours import codes, shots_of
from phantom_mega.errors import UserError

IN_PAIRS = ("fallback", "all", "none")
# In the order in which they are looked at; the number of each is its place.
REASONS = (
    None, "near duplicate", "other words", "face differs", "too different", "not mutual", "cap of the subject",
    "cap of the crop", "cap of the video pair",
)  # fmt: skip
_NEAR, _WORDS, _FACE, _FAR, _NOT_MUTUAL, _OF_SUBJECT, _OF_CROP, _OF_VIDEOS = range(1, len(REASONS))
_BATCH = 1 << 16  # rows laid out at once


@dataclass
class PairSettings:
    """Which candidates become pairs; what a change of these recomputes is this stage alone."""

    min_similarity: float = 0.75
    """Cosine of the image embeddings at least: below it is another subject. It depends on the model and on
    `embedding_transform`; the report's histogram shows where to cut. Of 719 crops of one film, labelled by hand, with
    MobileNet: at 0.70, 0.75 and 0.80, 91, 95 and 98 of 100 pairs were right, of 275, 246 and 198 of 291 subjects."""
    max_similarity: float = 0.97
    """At most: above it is the same picture again, which teaches to copy and paste."""
    min_face_similarity: float = 0.45
    """Where both faces are known, they decide instead of `min_similarity`: cosine at least. Usual for ArcFace; dlib's
    network needs about 0.9."""
    max_face_similarity: float = 0.95
    """At most: above it is the same picture again. With dlib's network 0.99."""
    same_head: bool = False
    """Whether the last nouns of both phrases must be the same (`a grey rabbit`, `the rabbit with an apple`). Of those
    crops 99 of 100 pairs at 0.75 were right then, of 218 subjects. For captions that name things alike."""
    mutual: int = 0
    """Each of two subjects must be among the other's so many most similar ones; 0 does not ask for it. It takes out
    what looks like everything, and costs subjects that many clips show."""
    max_references_per_subject: int = 4
    """Cross pairs of a clip's subject at most; a sample uses one, the others are there for other draws."""
    max_uses_per_crop: int = 20
    """Subjects that one crop may be the reference of."""
    max_pairs_per_video_pair: int = 1000
    """Cross pairs between two source videos, and within one: raise it for a data set of one film."""
    rejected_kept: int = 2
    """Rejected candidates of each subject and reason that are kept for the report, the most similar first."""
    in_pairs: str = "fallback"
    """Crops of the clip itself as references: `fallback` for subjects without a cross pair, `all`, or `none`."""

    def check(self) -> None:
        """Raise UserError on a value out of range."""
        if not (self.min_similarity <= self.max_similarity and self.min_face_similarity <= self.max_face_similarity):
            raise UserError("pairs.min_similarity and pairs.min_face_similarity must not exceed their max_")
        for name in ("max_references_per_subject", "max_uses_per_crop", "max_pairs_per_video_pair", "rejected_kept"):
            if getattr(self, name) < 0:
                raise UserError(f"pairs.{name}={getattr(self, name)}; it must be at least 0")
        if self.mutual < 0:
            raise UserError(f"pairs.mutual={self.mutual}; it must be at least 0")
        if self.in_pairs not in IN_PAIRS:
            raise UserError(f"pairs.in_pairs={self.in_pairs}; use {', '.join(IN_PAIRS[:-1])} or none")


@dataclass(frozen=True)
class Crops:
    """All crops, sorted by name; numbers are places in it, or stand for equal texts.

    Attributes:
        table: of the crops.
        subject, shot, video, head: int [n] of each crop.
        first: int [m], the first crop of each subject.
    """

    table: pa.Table
    subject: np.ndarray
    shot: np.ndarray
    video: np.ndarray
    head: np.ndarray
    first: np.ndarray


@dataclass(frozen=True)
class Candidates:
    """(subject, crop of another shot), each once, sorted by both; similarities float32, not a number where unknown."""

    subject: np.ndarray
    crop: np.ndarray
    similarity: np.ndarray
    face: np.ndarray


# -- from tables


def crops_of(table: pa.Table, clips: pa.Table) -> Crops:
    """The table `crops` as numbers."""
    table = table.sort_by("crop_id")
    clip = codes(table["clip_id"]).astype(np.int64)
    number = table["subject"].to_numpy().astype(np.int64)
    _, first, subject = np.unique(clip * (number.max(initial=0) + 1) + number, return_index=True, return_inverse=True)
    heads = codes(pa.array([head_of(phrase or "") for phrase in table["phrase"].to_pylist()], pa.string()))
    return Crops(table, subject, shots_of(table["clip_id"], clips), codes(table["video_id"]), heads, first)


def candidates_of(crops: Crops, neighbours: pa.Table) -> Candidates:
    """What the neighbours of a subject's crops are, and how similar.

    A subject has crops of several moments, and one of them is enough to show it as the reference does: the best
    similarity counts. It is also the one that tells a near duplicate, which need not be one of the first moment.
    """
    names, edges = crops.table["crop_id"].combine_chunks(), []
    for batch in neighbours.to_batches():
        place = pc.index_in(batch["crop_id"], value_set=names)
        batch, place = batch.filter(place.is_valid()), place.drop_null().to_numpy()
        source = np.repeat(place, pc.list_value_length(batch["near"]).to_numpy())
        near = pc.fill_null(pc.index_in(batch["near"].flatten(), value_set=names), -1).to_numpy()
        values = [batch[name].flatten().to_numpy(zero_copy_only=False) for name in ("similarity", "face_similarity")]
        keep = (near >= 0) & (crops.shot[source] != crops.shot[near])
        edges.append([one[keep] for one in (crops.subject[source], near, *values)])
    if not edges or not sum(len(one[0]) for one in edges):
        return Candidates(*(np.zeros(0, kind) for kind in (np.int64, np.int64, np.float32, np.float32)))
    subject, near, similarity, face = (np.concatenate(one) for one in zip(*edges, strict=True))
    edges.clear()
    return Candidates(*_best(subject, near, similarity, face))


def _best(subject: np.ndarray, other: np.ndarray, *values: np.ndarray) -> list[np.ndarray]:
    """Distinct (subject, other), sorted, with the greatest of each value."""
    order = np.lexsort((other, subject))
    subject, other = subject[order], other[order]
    new = np.ones(len(order), bool)
    new[1:] = (subject[1:] != subject[:-1]) | (other[1:] != other[:-1])
    starts = np.flatnonzero(new)
    return [subject[starts], other[starts], *(np.fmax.reduceat(one[order], starts) for one in values)]


# -- rules


def are_mutual(crops: Crops, found: Candidates, most: int) -> np.ndarray:
    """bool [candidates]: the crop's subject is among the subject's `most` most similar ones, and the other way round.

    Of a subject's crops the most similar one counts.
    """
    count = len(crops.first)
    one, other, similarity = _best(found.subject, crops.subject[found.crop].astype(np.int64), found.similarity)
    rank = _rank(one, similarity, other)
    key = one.astype(np.int64) * count + other  # sorted
    near = key[rank < most]

    def among(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        wanted = first.astype(np.int64) * count + second
        return near[np.searchsorted(near, wanted).clip(max=len(near) - 1)] == wanted

    targets = crops.subject[found.crop]
    return among(found.subject, targets) & among(targets, found.subject)


def _rank(group: np.ndarray, similarity: np.ndarray, other: np.ndarray, *within: np.ndarray) -> np.ndarray:
    """int [n]: place of each within its group, most similar first, equal ones by number."""
    order = np.lexsort((other, -similarity, *within, group))
    keys = [one[order] for one in (group, *within)]
    new = np.ones(len(order), bool)
    new[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    starts = np.flatnonzero(new)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(starts, np.diff([*starts, len(order)]))
    return rank


def judged(crops: Crops, found: Candidates, settings: PairSettings) -> np.ndarray:
    """int8 [candidates]: the number of the first rule that each breaks in `REASONS`, caps aside."""
    known = ~np.isnan(found.face)
    reasons = np.zeros(len(found.crop), np.int8)

    def reject(broken: np.ndarray, reason: int) -> None:
        reasons[broken & (reasons == 0)] = reason

    reject(found.similarity > settings.max_similarity, _NEAR)
    reject(found.face > settings.max_face_similarity, _NEAR)  # not a number is not greater
    if settings.same_head:
        reject(crops.head[crops.first[found.subject]] != crops.head[found.crop], _WORDS)
    reject(found.face < settings.min_face_similarity, _FACE)
    reject(~known & ~(found.similarity >= settings.min_similarity), _FAR)
    if settings.mutual and len(reasons):
        reject(~are_mutual(crops, found, settings.mutual), _NOT_MUTUAL)
    return reasons


def capped(crops: Crops, found: Candidates, reasons: np.ndarray, settings: PairSettings) -> np.ndarray:
    """`reasons` with caps: all subjects' best references come first, then their second ones, and so on."""
    reasons, good = reasons.copy(), np.flatnonzero(reasons == 0)
    rank = _rank(found.subject[good], found.similarity[good], found.crop[good])
    order = good[np.lexsort((found.crop[good], found.subject[good], -found.similarity[good], rank))]
    references, uses, between = Counter(), Counter(), Counter()
    count = int(crops.video.max(initial=0)) + 1
    for start in range(0, len(order), _BATCH):
        some = order[start : start + _BATCH]
        subject, crop = found.subject[some], found.crop[some]
        one, other = crops.video[crops.first[subject]].astype(np.int64), crops.video[crop]
        videos = np.minimum(one, other) * count + np.maximum(one, other)
        for i, a, b, pair in zip(*(column.tolist() for column in (some, subject, crop, videos)), strict=True):
            if references[a] >= settings.max_references_per_subject:
                reasons[i] = _OF_SUBJECT
            elif uses[b] >= settings.max_uses_per_crop:
                reasons[i] = _OF_CROP
            elif between[pair] >= settings.max_pairs_per_video_pair:
                reasons[i] = _OF_VIDEOS
            else:
                references[a] += 1
                uses[b] += 1
                between[pair] += 1
    return reasons


def to_keep(found: Candidates, reasons: np.ndarray, most: int) -> np.ndarray:
    """int: places of the candidates that become rows: all accepted ones, `most` of each subject and reason."""
    bad = np.flatnonzero(reasons)
    rank = _rank(found.subject[bad], found.similarity[bad], found.crop[bad], reasons[bad])
    return np.sort(np.concatenate([np.flatnonzero(reasons == 0), bad[rank < most]]))


def own_crops(crops: Crops) -> np.ndarray:
    """int [m]: of each subject, the crop that was largest in its frame."""
    area = crops.table["width"].to_numpy().astype(np.int64) * crops.table["height"].to_numpy()
    order = np.lexsort((np.arange(len(area)), -area, crops.subject))
    return order[np.unique(crops.subject[order], return_index=True)[1]]


# -- to a table


def laid_out(crops: Crops, subject, crop, kind: str, similarity, face, reasons) -> list[pa.RecordBatch]:
    """Rows of the stage's table, with their verdict."""
    verdict = (pa.field("accepted", pa.bool_()), pa.field("reason", pa.string()), pa.field("score", pa.float64()))
    schema = pa.schema([*fields_of("pairs"), *verdict])
    words, batches = pa.array(REASONS, pa.string()), []
    clip_ids, numbers, names = (crops.table[name].combine_chunks() for name in ("clip_id", "subject", "crop_id"))
    for start in range(0, len(subject), _BATCH):
        part = slice(start, start + _BATCH)
        first = pa.array(crops.first[subject[part]])
        clip, number, name = clip_ids.take(first), numbers.take(first), names.take(pa.array(crop[part]))
        score, of_face = (
            pa.array(one[part].astype(np.float64), pa.float64(), from_pandas=True) for one in (similarity, face)
        )
        pair_id = pc.binary_join_element_wise(clip, number.cast(pa.string()), name, ":")
        kinds = pa.repeat(pa.scalar(kind), len(name))
        accepted, reason = pa.array(reasons[part] == 0), words.take(pa.array(reasons[part]))
        columns = [pair_id, clip, number, name, kinds, score, of_face, accepted, reason, score]
        batches.append(pa.record_batch(columns, schema))
    return batches or [pa.RecordBatch.from_pylist([], schema)]


def make_pairs(tables: Mapping[str, pa.Table], settings: PairSettings) -> pa.Table:
    """Cross pairs, rejected candidates, and in-pairs of all subjects."""
    crops = crops_of(tables["crops"], tables["clips"])
    found = candidates_of(crops, tables["neighbours"])
    reasons = capped(crops, found, judged(crops, found, settings), settings)
    rows = to_keep(found, reasons, settings.rejected_kept)
    cross = [one[rows] for one in (found.subject, found.crop)]
    batches = laid_out(crops, *cross, "cross", found.similarity[rows], found.face[rows], reasons[rows])
    if settings.in_pairs != "none":
        alone = np.ones(len(crops.first), bool)
        if settings.in_pairs == "fallback":
            alone[found.subject[reasons == 0]] = False
        subject, unknown = np.flatnonzero(alone), np.full(alone.sum(), np.nan)
        accepted = np.zeros(len(subject), np.int8)
        batches += laid_out(crops, subject, own_crops(crops)[subject], "in", unknown, unknown, accepted)
    return pa.Table.from_batches(batches)


def open_pairs(settings: PairSettings) -> Callable[[Mapping[str, pa.Table]], pa.Table]:
    """The function of the tables.

    Raises:
        UserError: a setting is out of range.
    """
    settings.check()
    return lambda tables: make_pairs(tables, settings)


def stage(settings: PairSettings) -> Stage:
    """`pairs` of `crops` and their `neighbours`."""
    crops = ("crop_id", "clip_id", "video_id", "subject", "phrase", "width", "height")
    inputs = {
        "crops": crops,
        "clips": ("clip_id", "shot_id"),
        "neighbours": ("crop_id", "near", "similarity", "face_similarity"),
    }
    return Stage("pairs", fields_of("pairs"), inputs, settings, open_pairs, whole=True)
