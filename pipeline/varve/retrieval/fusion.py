"""Reciprocal rank fusion of rankings of the same rows. Pure numpy.

Source: Cormack, Clarke & Buettcher 2009, Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning
Methods, with their constant k = 60. Invariants: only ranks count, not scores; rows with equal sums are ordered by their
number.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from varve.indexing.neighbours import NONE, Neighbours

_CONSTANT = 60


def best_of_rows(found: Neighbours, rows: NDArray[np.int64]) -> Neighbours:
    """The ranking of rows from one of positions: each row at the rank of its best position.

    Args:
        found: (Q, k) of positions.
        rows: (Q, k) row of each position; -1 where there is none.

    Returns:
        (Q, k) of rows, the nearest first; `NONE` at the end where rows occur several times.
    """
    ranked = Neighbours.none(len(rows), rows.shape[1])
    for query, of_query in enumerate(rows):
        distinct, firsts = np.unique(of_query, return_index=True)
        order = np.sort(firsts[distinct != NONE])
        ranked.positions[query, : len(order)] = of_query[order]
        ranked.scores[query, : len(order)] = found.scores[query, order]
    return ranked


def fuse(rankings: Sequence[Neighbours], k: int) -> Neighbours:
    """The k rows with the largest sums of 1 / (60 + rank) over the rankings, where the first rank is 1.

    Args:
        rankings: for the same queries, of rows; a row is at most once in each.
        k: rows to return.
    """
    num_queries = len(rankings[0].positions)
    fused = Neighbours.none(num_queries, k)
    for query in range(num_queries):
        lists = [each.positions[query][each.positions[query] != NONE] for each in rankings]
        rows, inverse = np.unique(np.concatenate(lists), return_inverse=True)
        parts = np.concatenate([1 / (_CONSTANT + 1 + np.arange(len(each))) for each in lists])
        sums = np.bincount(inverse, parts, minlength=len(rows))
        # Sums of the same ranks in another order differ in the last bits.
        order = np.lexsort((rows, -np.round(sums, 12)))[:k]
        fused.positions[query, : len(order)] = rows[order]
        fused.scores[query, : len(order)] = sums[order]
    return fused
