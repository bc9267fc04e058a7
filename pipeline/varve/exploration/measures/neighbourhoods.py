"""Nearest rows and near-duplicate pairs within a sample, by cosine.

Knows nothing of texts. Invariants: results are exact within the sample; scores are float64 cosines, and a vector of
zeros has cosine 0 with all others.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from varve.indexing.metric import Metric, to_unit_length
from varve.retrieval.near_duplicates import Pairs, near_pairs

_COSINE = Metric("cosine", unit=True)  # of vectors that `_unit` has divided by their lengths
_BLOCK_ROWS = 4096
_CANDIDATES = 16  # pairs per shown pair whose exact scores are compared

Positions = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class NearPairs:
    """Pairs whose cosine reaches a threshold.

    Attributes:
        one: (P,) positions of the shown pairs, the highest cosine first.
        other: (P,) positions, each greater than that in `one`.
        scores: (P,) float64 cosines.
        num_pairs: all pairs.
        num_equal: pairs of equal vectors among them.
    """

    one: Positions
    other: Positions
    scores: NDArray[np.float64]
    num_pairs: int
    num_equal: int


def nearest_rows(vectors: NDArray[np.float32], rows: Positions, k: int) -> tuple[Positions, NDArray[np.float64]]:
    """The nearest other rows of some rows.

    Args:
        vectors: (N, width) float32.
        rows: (Q,) positions.
        k: number of neighbours, at most N - 1.

    Returns:
        (Q, k) positions, the nearest first and equal ones by position, and their cosines.
    """
    queries = _unit(vectors[rows])
    blocks = [_unit(vectors[at : at + _BLOCK_ROWS]) @ queries.T for at in range(0, len(vectors), _BLOCK_ROWS)]
    scores = np.concatenate(blocks).T
    scores[np.arange(len(rows)), rows] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, : min(k, len(vectors) - 1)]
    return order, np.take_along_axis(scores, order, axis=1)


def near_duplicates(vectors: NDArray[np.float32], threshold: float, num_shown: int) -> NearPairs:
    """All pairs of (N, width) vectors whose cosine reaches the threshold, counted; those of the highest cosine."""
    unit = to_unit_length(vectors)
    num_pairs, best = 0, Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    for pairs in near_pairs(unit, threshold, _COSINE):
        num_pairs += len(pairs)
        best = _highest(best, pairs, _CANDIDATES * num_shown)
    scores = np.einsum("nd,nd->n", _unit(vectors[best.one]), _unit(vectors[best.other]))
    order = np.lexsort((best.other, best.one, -scores))[:num_shown]
    return NearPairs(best.one[order], best.other[order], scores[order], num_pairs, _count_equal(vectors))


def _highest(one: Pairs, other: Pairs, limit: int) -> Pairs:
    joined = Pairs(*(np.concatenate([getattr(each, name) for each in (one, other)]) for name in Pairs.__slots__))
    if len(joined) <= limit:
        return joined
    return joined.select(np.sort(np.argpartition(-joined.scores, limit)[:limit]))


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    exact = vectors.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    return exact / np.where(lengths == 0, 1, lengths)


def _count_equal(vectors: NDArray[np.float32]) -> int:
    """Pairs of equal vectors that are not zero."""
    filled = np.ascontiguousarray(vectors[vectors.any(axis=1)])
    if not len(filled):
        return 0
    rows = filled.view(np.dtype((np.void, filled.dtype.itemsize * filled.shape[1]))).ravel()
    counts = np.unique(rows, return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())
