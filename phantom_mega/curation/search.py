"""Nearest neighbours among unit vectors by FAISS: exact, or by inverted lists where there are many.

Every block of queries is searched by one thread, and lists are trained by one, so that nothing depends on how many
threads there are.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import faiss
import numpy as np
from faiss.contrib import ivf_tools

BLOCK = 1024  # queries
_PAIR_BLOCK = 256  # rows whose neighbours' vectors are gathered at once
_EXTRA = 8  # asked for beyond what is kept: the owner's own are among the nearest
_MOST = 4096  # asked for at most
_TRAINING_POINTS = 40  # of each list
_ITERATIONS = 10


@dataclass(frozen=True)
class IndexOptions:
    """How vectors are searched.

    Attributes:
        exact_below: vectors up to which all are compared.
        probes: lists that a query looks into, beyond that.
        half: keep the lists' vectors as float16: half of the memory, and faster.
        seed: of the training of the lists.
    """

    exact_below: int = 50_000
    probes: int = 16
    half: bool = True
    seed: int = 0


def in_blocks(function: Callable[[int, int], object], count: int, block: int = BLOCK) -> list:
    """`function(start, stop)` of every block of rows, in order; on as many threads as OpenMP has."""
    starts = range(0, count, block)
    threads = max(1, min(faiss.omp_get_max_threads(), len(starts)))
    with ThreadPoolExecutor(threads, initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(lambda start: function(start, min(start + block, count)), starts))


def number_of_lists(count: int) -> int:
    """4 sqrt(n), which FAISS recommends for up to a million vectors; fewer where lists would be nearly empty."""
    return max(1, min(round(4 * count**0.5), count // 10))


class Searcher:
    """An index of vectors that are also the queries.

    Args:
        vectors: float32 [n, d], each of length 1.
        options: exact or approximate.
    """

    def __init__(self, vectors: np.ndarray, options: IndexOptions):
        self.vectors = np.ascontiguousarray(vectors, np.float32)
        count, width = self.vectors.shape
        self.probes: np.ndarray | None = None
        if count <= options.exact_below:
            self.index = faiss.IndexFlatIP(width)
            self.index.add(self.vectors)
            return
        lists = number_of_lists(count)
        self.index = _empty_lists(width, lists, options.half)
        sample = np.random.default_rng(options.seed).choice(count, min(count, lists * _TRAINING_POINTS), replace=False)
        training = self.vectors[np.sort(sample)]
        in_blocks(lambda *_: self.index.train(training), 1)
        probes = min(options.probes, lists)
        self.index.nprobe = probes
        found = in_blocks(lambda a, b: self.index.quantizer.search(self.vectors[a:b], probes), count)
        self.scores, self.probes = (np.concatenate(one) for one in zip(*found, strict=True))
        ivf_tools.add_preassigned(self.index, self.vectors, self.probes[:, 0].copy())

    def search(self, rows: np.ndarray, count: int) -> np.ndarray:
        """The nearest of some of the vectors, themselves among them: int64 [rows, count], -1 where there is none."""
        if self.probes is None:
            return self.index.search(self.vectors[rows], count)[1]
        probes, scores = self.probes[rows], self.scores[rows]
        return ivf_tools.search_preassigned(self.index, self.vectors[rows], count, probes, scores)[1]


def _empty_lists(width: int, lists: int, half: bool) -> faiss.IndexIVF:
    quantizer, metric = faiss.IndexFlatIP(width), faiss.METRIC_INNER_PRODUCT
    if half:
        sixteen = faiss.ScalarQuantizer.QT_fp16
        index = faiss.IndexIVFScalarQuantizer(quantizer, width, lists, sixteen, metric, False)
    else:
        index = faiss.IndexIVFFlat(quantizer, width, lists, metric)
    index.cp.niter, index.cp.spherical, index.cp.min_points_per_centroid = _ITERATIONS, True, 1
    return index


def nearest(searcher: Searcher, owners: np.ndarray, kept: int) -> np.ndarray:
    """For each vector, the nearest that belong to others.

    Args:
        searcher: of n vectors.
        owners: int [n], whom each belongs to.
        kept: how many.

    Returns:
        int32 [n, kept], nearest first, -1 where there are no more.
    """
    count = len(searcher.vectors)
    found = np.full((count, kept), -1, np.int32)
    pending, asked = np.arange(count), min(kept + _EXTRA, count)
    while len(pending):

        def block(start: int, stop: int, pending=pending, asked=asked) -> np.ndarray:
            rows = pending[start:stop]
            near = searcher.search(rows, asked)
            other = (near >= 0) & (owners[near] != owners[rows][:, None])
            rank = other.cumsum(axis=1)
            row, column = np.nonzero(other & (rank <= kept))
            found[rows[row], rank[row, column] - 1] = near[row, column]
            return rows[(rank[:, -1] < kept) & (near[:, -1] >= 0)]

        pending = np.concatenate(in_blocks(block, len(pending)))
        if asked >= min(count, _MOST):
            break
        asked = min(4 * asked, count, _MOST)
    return found


def cosines(vectors: np.ndarray, near: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    """Similarities of each vector to others, equal both ways round.

    Args:
        vectors: float32 [m, d], each of length 1.
        near: int [n, k], which others; -1 where there is none.
        rows: int [n], which vector each row of `near` is of, -1 where there is none; 0 to n - 1 by default.

    Returns:
        float32 [n, k] within -1 and 1; not a number where there is none.
    """
    rows = np.arange(len(near)) if rows is None else rows
    found = np.full(near.shape, np.nan, np.float32)

    def block(start: int, stop: int) -> None:
        row, column = np.nonzero((near[start:stop] >= 0) & (rows[start:stop, None] >= 0))
        first, second = vectors[rows[start + row]], vectors[near[start + row, column]]
        found[start + row, column] = np.einsum("nd,nd->n", first, second).clip(-1, 1)

    in_blocks(block, len(near), _PAIR_BLOCK)
    return found


def transform(vectors: np.ndarray, how: str, width: int, seed: int) -> np.ndarray:
    """Take out what all vectors have in common, and scale to length 1 again.

    Args:
        vectors: float32 [n, d]; `center` changes them in place.
        how: `none`, `center` (less their mean) or `whiten` (principal components, each of the same variance).
        width: components at most; there are no more than a quarter of the vectors, for the others would be noise.
        seed: of the choice of up to 65,536 vectors that the mean and the components are measured on.
    """
    count = len(vectors)
    if how == "none" or count < 2:
        return vectors
    sample = np.sort(np.random.default_rng(seed).choice(count, min(count, 65_536), replace=False))
    training = vectors[sample]
    if how == "center":
        vectors -= training.mean(axis=0, dtype=np.float64).astype(np.float32)
    else:
        matrix = faiss.PCAMatrix(vectors.shape[1], max(1, min(width, vectors.shape[1], len(sample) // 4)), -0.5)
        in_blocks(lambda *_: matrix.train(training), 1)
        vectors = np.concatenate(in_blocks(lambda a, b: matrix.apply(vectors[a:b]), count))
    faiss.normalize_L2(vectors)
    return vectors
