"""Stage `neighbours`: for every crop, those of other shots that look most like it, by image and by face (paper 3.1).

No threshold decides here, so that thresholds can be changed without searching again. Vectors stay in arrays of numpy
and arrow: a million crops of 768 numbers are 3 GiB, and would be 25 GiB as Python's numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from phantom_mega.curation.columns import fields_of
from phantom_mega.curation.engine.stage import Stage
from phantom_mega.errors import UserError

TRANSFORMS = ("none", "center", "whiten")
_BATCH = 32_768  # rows whose names are laid out at once: more could be too much text for one array


@dataclass
class NeighbourSettings:
    """How crops are searched."""

    neighbours_kept: int = 32
    """Of each crop, by image."""
    face_neighbours_kept: int = 8
    """Of each crop with a face, by face, beside those: the same person in other clothes."""
    category_groups: list[str] = field(default_factory=list)
    """Categories that are searched together, as `human+ip_character`; all others are searched by themselves. A pair is
    never of two categories that are not searched together."""
    exact_below: int = 50_000
    """Crops of a category up to which each is compared with all; beyond that they are searched by inverted lists."""
    probes: int = 16
    """Lists of the 4 sqrt(n) that are searched for each crop. More find more, and take longer."""
    search_half: bool = True
    """Search float16 copies of the vectors: half of the memory; similarities are of float32 in any case."""
    search_seed: int = 0
    """Of the sample that lists, mean and components are made from."""
    embedding_transform: str = "none"
    """`center` takes the mean of all embeddings out of each, `whiten` their principal components' scale too.
    Either may help where all similarities are high. Thresholds are others then: about 0.4 for what was 0.7."""
    whitened_dimensions: int = 64
    """Components that `whiten` keeps; at most a quarter of the crops."""

    def check(self) -> None:
        """Raise UserError on a value out of range."""
        for name in ("neighbours_kept", "probes", "whitened_dimensions"):
            if getattr(self, name) < 1:
                raise UserError(f"neighbours.{name}={getattr(self, name)}; it must be at least 1")
        if self.face_neighbours_kept < 0 or self.exact_below < 0:
            raise UserError("neighbours.face_neighbours_kept and neighbours.exact_below must be at least 0")
        if self.embedding_transform not in TRANSFORMS:
            raise UserError(
                f"neighbours.embedding_transform={self.embedding_transform}; use {', '.join(TRANSFORMS[:-1])} or whiten"
            )
        listed = [name for group in self.category_groups for name in group.split("+")]
        if twice := {name for name in listed if listed.count(name) > 1}:
            raise UserError(f"neighbours.category_groups holds {min(twice)} twice; a category is in one group")


# -- tables to arrays


def matrix(table: pa.Table, column: str, names: pa.Array) -> np.ndarray:
    """The vectors of some crops, without a Python object for any number.

    Args:
        table: with `crop_id` and a column of vectors.
        column: of the vectors.
        names: crops, which must be in the table; others are passed over.

    Returns:
        float32 [names, width].

    Raises:
        UserError: vectors differ in length, or are not of length 1.
    """
    found: np.ndarray | None = None
    for batch in table.to_batches():
        rows = pc.index_in(batch["crop_id"], value_set=names)
        batch = batch.filter(rows.is_valid())
        if not len(batch):
            continue
        lengths = pc.list_value_length(batch[column])
        width = lengths[0].as_py() if found is None else found.shape[1]
        if lengths.null_count or not pc.all(pc.equal(lengths, width)).as_py():
            raise UserError(f"vectors of the column {column} differ in length; run the stage that makes them again")
        values = batch[column].flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        norms = np.einsum("nd,nd->n", values, values)
        if not (np.abs(norms - 1) < 1e-3).all():
            raise UserError(f"the column {column} holds vectors that are not of length 1; run its stage again")
        if found is None:
            found = np.zeros((len(names), width), np.float32)
        found[rows.drop_null().to_numpy()] = values
    return np.zeros((0, 1), np.float32) if found is None else found


def codes(values: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """int [n]: equal numbers for equal texts."""
    values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return values.dictionary_encode(null_encoding="encode").indices.to_numpy(zero_copy_only=False)


def grouped(categories: pa.ChunkedArray, groups: list[str]) -> np.ndarray:
    """int [n]: equal numbers for what is searched together."""
    group_of = {category: group for group in groups for category in group.split("+")}
    return codes(pa.array([group_of.get(one, one) for one in categories.to_pylist()], pa.string()))


def shots_of(clip_ids: pa.ChunkedArray, clips: pa.Table) -> np.ndarray:
    """int [n]: equal numbers for clips of one shot; a clip without a shot is one of its own."""
    shots = pc.coalesce(clips["shot_id"], clips["clip_id"]).combine_chunks()
    place = pc.index_in(clip_ids, value_set=clips["clip_id"].combine_chunks())
    return codes(pc.coalesce(shots.take(place.combine_chunks()), clip_ids.combine_chunks()))


def laid_out(names: pa.Array, near: np.ndarray, similarity: np.ndarray, face_similarity: np.ndarray) -> pa.Table:
    """The stage's table: neighbours by similarity, equal ones by name.

    Args:
        names: n crops, sorted.
        near: int [n, k] places in `names`, -1 for none.
        similarity, face_similarity: float32 [n, k], not a number where unknown.
    """
    batches = []
    for start in range(0, len(names), _BATCH):
        part = slice(start, start + _BATCH)
        order = np.lexsort((near[part], -similarity[part], near[part] < 0))
        ordered = [np.take_along_axis(one[part], order, axis=1) for one in (near, similarity, face_similarity)]
        there = ordered[0] >= 0
        offsets = pa.array(np.concatenate([[0], there.sum(axis=1).cumsum()]), pa.int32())
        values = [names.take(pa.array(ordered[0][there]))]
        values += [pa.array(one[there], pa.float32(), from_pandas=True) for one in ordered[1:]]
        lists = [pa.ListArray.from_arrays(offsets, one) for one in values]
        batches.append(pa.record_batch([names[part], *lists], pa.schema(fields_of("neighbours"))))
    return pa.Table.from_batches(batches, pa.schema(fields_of("neighbours")))


# -- the search


def find(tables: dict[str, pa.Table], settings: NeighbourSettings) -> pa.Table:
    """Neighbours of all crops that have an embedding; takes the embeddings out of `tables`, to free their memory."""
    from phantom_mega.curation.search import cosines, transform

    known = pc.is_in(tables["crops"]["crop_id"], value_set=tables["embeddings"]["crop_id"].combine_chunks())
    crops = tables["crops"].filter(known).sort_by("crop_id")
    names = crops["crop_id"].combine_chunks()
    owners = shots_of(crops["clip_id"], tables["clips"])
    groups = grouped(crops["category"], settings.category_groups)
    vectors = matrix(tables.pop("embeddings"), "embedding", names)
    vectors = transform(vectors, settings.embedding_transform, settings.whitened_dimensions, settings.search_seed)
    near = _search(vectors, groups, owners, settings.neighbours_kept, settings)

    with_face = pc.index_in(tables["faces"]["crop_id"], value_set=names).drop_null().unique()
    with_face = np.sort(with_face.to_numpy().astype(np.int64))
    if len(with_face) and settings.face_neighbours_kept:
        faces = matrix(tables.pop("faces"), "face", names.take(pa.array(with_face)))
        local = _search(faces, groups[with_face], owners[with_face], settings.face_neighbours_kept, settings)
        near = _with_more(near, with_face, np.where(local < 0, -1, with_face[local]).astype(np.int32))
        row_of = np.full(len(names) + 1, -1)  # the last one is that of no crop
        row_of[with_face] = np.arange(len(with_face))
        face_similarity = cosines(faces, row_of[near], row_of[:-1])
    else:
        face_similarity = np.full(near.shape, np.nan, np.float32)
    return laid_out(names, near, cosines(vectors, near), face_similarity)


def _search(vectors: np.ndarray, groups: np.ndarray, owners: np.ndarray, kept: int, settings) -> np.ndarray:
    """int32 [n, kept] nearest of each within its group."""
    from phantom_mega.curation.search import IndexOptions, Searcher, nearest

    options = IndexOptions(settings.exact_below, settings.probes, settings.search_half, settings.search_seed)
    found = np.full((len(vectors), kept), -1, np.int32)
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group).astype(np.int32)
        some = vectors if len(rows) == len(vectors) else vectors[rows]
        near = nearest(Searcher(some, options), owners[rows], kept)
        found[rows] = np.where(near < 0, -1, rows[near])
    return found


def _with_more(near: np.ndarray, rows: np.ndarray, more: np.ndarray) -> np.ndarray:
    """Neighbours of all crops, with more of some crops where they are not among them yet."""
    wider = np.full((len(near), near.shape[1] + more.shape[1]), -1, np.int32)
    wider[:, : near.shape[1]] = near
    for start in range(0, len(rows), _BATCH):
        some, extra = rows[start : start + _BATCH], more[start : start + _BATCH]
        known = (extra[:, :, None] == near[some][:, None, :]).any(axis=2)
        wider[some, near.shape[1] :] = np.where(known, -1, extra)
    return wider


def open_neighbours(settings: NeighbourSettings) -> Callable[[dict[str, pa.Table]], pa.Table]:
    """The function of the tables.

    Raises:
        UserError: a setting is out of range.
    """
    settings.check()
    return lambda tables: find(tables, settings)


def stage(settings: NeighbourSettings) -> Stage:
    """`neighbours` of `crops` with `embeddings`, and `faces` where there are any."""
    inputs = {
        "crops": ("crop_id", "clip_id", "category"),
        "clips": ("clip_id", "shot_id"),
        "embeddings": ("crop_id", "embedding"),
        "faces": ("crop_id", "face"),
    }
    return Stage("neighbours", fields_of("neighbours"), inputs, settings, open_neighbours, whole=True)
