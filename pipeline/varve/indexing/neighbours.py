"""The exact nearest neighbours of queries, found block by block.

Knows nothing of files and outputs. Invariants: neighbours are ordered by score, the nearest first, and equal scores by
position, as a full sort would order them; the result does not depend on the blocks or on the order of `merge`; memory
is bounded by the block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from varve.indexing.metric import Metric
from varve.indexing.rows import Vectors, take
from varve.indexing.scores import block_scores, pair_scores, prepare, prepare_queries

_BLOCK_ROWS = 2048
_PAIRS_AT_ONCE = 1024  # float64 vectors that fit the cache of a core
_MANY_CANDIDATES = 4  # times k for each query
NONE = -1  # position where fewer than k neighbours exist


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """The k nearest vectors of Q queries.

    Attributes:
        positions: (Q, k) int64, -1 where there are fewer.
        scores: (Q, k) float32, -inf there.
    """

    positions: NDArray[np.int64]
    scores: NDArray[np.float32]

    @classmethod
    def none(cls, num_queries: int, k: int) -> Self:
        """No neighbours."""
        return cls(np.full((num_queries, k), NONE, np.int64), np.full((num_queries, k), -np.inf, np.float32))

    @classmethod
    def merge(cls, found: Sequence[Self]) -> Self:
        """The k nearest of several results for the same queries; each position is in one of them.

        Args:
            found: at least one result, all with the same k.
        """
        if len(found) == 1:
            return found[0]
        positions = np.concatenate([each.positions for each in found], axis=1)
        scores = np.concatenate([each.scores for each in found], axis=1)
        return cls(positions, scores).best(found[0].positions.shape[1])

    def best(self, k: int) -> Self:
        """The k nearest, ordered by score and position."""
        order = np.lexsort((self.positions, -self.scores), axis=1)[:, :k]
        positions = np.take_along_axis(self.positions, order, axis=1)
        return type(self)(positions, np.take_along_axis(self.scores, order, axis=1))


def nearest(
    queries: Vectors,
    vectors: Vectors,
    first: int,
    k: int,
    metric: Metric,
    *,
    leave_out: NDArray[np.int64] | None = None,
    floor: NDArray[np.float32] | None = None,
) -> Neighbours:
    """The k nearest of consecutive vectors.

    Args:
        queries: Q, as the encoder returns them or as they are stored.
        vectors: N, as they are stored.
        first: position of the first vector.
        k: number of neighbours.
        metric: how vectors are compared.
        leave_out: (Q,) position that is no neighbour of each query: its own.
        floor: (Q,) scores that a neighbour must reach: the k-th ones of other vectors.
    """
    prepared, num_queries = prepare_queries(queries, metric), len(queries)
    found = Neighbours.none(num_queries, k)
    lowest = np.full(num_queries, -np.inf, np.float32) if floor is None else floor
    for start in range(0, len(vectors), _BLOCK_ROWS):
        block = prepare(take(vectors, slice(start, start + _BLOCK_ROWS)), metric)
        kept = k if leave_out is None else k + 1
        better = _candidates(prepared, block, metric, kept, np.maximum(lowest, found.scores[:, -1]))
        if leave_out is not None:
            better = [(q, n[n + first + start != leave_out[q]]) for q, n in better]
        candidates = _scored(prepared, block, metric, better, (num_queries, first + start))
        found = Neighbours.merge([found, candidates])
    return found


def _candidates(
    queries: Vectors, block: Vectors, metric: Metric, k: int, lowest: NDArray[np.float32]
) -> list[tuple[int, NDArray[np.int64]]]:
    """(query, rows of the block) that may be among its k nearest, given the score of the k-th nearest so far."""
    scores, error = block_scores(queries, block, metric)
    if scores.shape[1] > k:  # one block alone bounds the k-th score from below
        of_block = np.partition(scores, scores.shape[1] - k, axis=1)[:, -k] - 2 * error
        lowest = np.maximum(lowest, of_block)
    mask = scores >= (lowest - 2 * error)[:, None]
    if isinstance(block, np.ndarray) and np.count_nonzero(mask) > _MANY_CANDIDATES * k * len(mask):
        mask[:, _repetitions(block, k)] = False
    return [(int(query), np.flatnonzero(mask[query])) for query in np.flatnonzero(mask.any(axis=1))]


def _repetitions(vectors: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Rows that are no neighbours, because k equal ones with lower positions are before them."""
    rows = np.ascontiguousarray(vectors).view(np.dtype((np.void, vectors.shape[1] * vectors.itemsize))).ravel()
    _, group, sizes = np.unique(rows, return_inverse=True, return_counts=True)
    by_group = np.argsort(group, kind="stable")
    place = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return by_group[place >= k]


def _scored(
    queries: Vectors,
    block: Vectors,
    metric: Metric,
    candidates: Sequence[tuple[int, NDArray[np.int64]]],
    shape: tuple[int, int],
) -> Neighbours:
    """The candidates with their exact scores, padded to a rectangle; `shape` is (Q, position of the block)."""
    num_queries, first = shape
    widest = max((len(rows) for _, rows in candidates), default=0)
    result = Neighbours.none(num_queries, widest)
    queries_of = np.repeat([q for q, _ in candidates], [len(rows) for _, rows in candidates]).astype(np.int64)
    rows_of = np.concatenate([rows for _, rows in candidates]) if candidates else np.zeros(0, np.int64)
    slot = np.concatenate([np.arange(len(rows)) for _, rows in candidates]) if candidates else rows_of
    for at in range(0, len(rows_of), _PAIRS_AT_ONCE):
        some = slice(at, at + _PAIRS_AT_ONCE)
        scores = pair_scores(take(queries, queries_of[some]), take(block, rows_of[some]), metric)
        result.positions[queries_of[some], slot[some]] = rows_of[some] + first
        result.scores[queries_of[some], slot[some]] = scores
    return result
