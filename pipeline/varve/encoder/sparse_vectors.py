"""Sparse vectors of many windows or rows, as arrays: ids and weights, one vector after another. Pure numpy.

Invariants: the ids of a vector ascend and are distinct; no weight is 0, but it may be NaN.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varve.encoder.packing import Index, token_index
from varve.preprocessing.tokens import starts_of


@dataclass(frozen=True, slots=True)
class SparseVectors:
    """N sparse vectors; vector n holds ids[offsets[n]:offsets[n + 1]] and their weights."""

    offsets: Index  # (N + 1,)
    ids: NDArray[np.int32]
    weights: NDArray[np.float32]

    def take(self, vectors: Index) -> "SparseVectors":
        """These vectors, in this order."""
        entries = token_index(self.offsets, vectors)
        return SparseVectors(starts_of(np.diff(self.offsets)[vectors]), self.ids[entries], self.weights[entries])

    def combine(self, starts: Index, *, by_sum: bool) -> "SparseVectors":
        """The R vectors of rows from those of their windows: the largest weight of each id, or the sum.

        Args:
            starts: (R + 1,) first vector of each row.
            by_sum: add the weights.
        """
        if len(starts) == len(self.offsets):
            return self
        rows = np.repeat(np.arange(len(starts) - 1), np.diff(self.offsets[starts]))
        return reduce_entries(rows, self.ids, self.weights, len(starts) - 1, by_sum=by_sum)

    def keep_largest(self, count: int) -> "SparseVectors":
        """The vectors with at most `count` entries each, those with the largest magnitudes."""
        rows = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        order = np.lexsort((self.ids, -np.abs(self.weights), rows))
        ranks = np.arange(len(order)) - self.offsets[rows]
        kept = np.sort(order[ranks < count])
        num_entries = np.bincount(rows[kept], minlength=len(self.offsets) - 1)
        return SparseVectors(starts_of(num_entries), self.ids[kept], self.weights[kept])


def reduce_entries(
    rows: Index, ids: NDArray[Any], weights: NDArray[np.float32], num_rows: int, *, by_sum: bool = False
) -> SparseVectors:
    """Sparse vectors from entries in any order: entries of a row with equal ids become one, zeros are dropped.

    Args:
        rows: (E,) the row of each entry.
        ids: (E,) its id.
        weights: (E,) its weight.
        num_rows: R, the number of vectors.
        by_sum: add the weights of equal ids; otherwise keep the largest.
    """
    order = np.lexsort((ids, rows))
    rows, ids, weights = rows[order], ids[order], weights[order]
    starts = np.flatnonzero((np.diff(rows, prepend=-1) != 0) | (np.diff(ids, prepend=-1) != 0))
    if len(starts):
        weights = (np.add if by_sum else np.maximum).reduceat(weights, starts)
    rows, ids = rows[starts], ids[starts]
    kept = weights != 0
    offsets = starts_of(np.bincount(rows[kept], minlength=num_rows))
    return SparseVectors(offsets, ids[kept].astype(np.int32), weights[kept].astype(np.float32, copy=False))


@dataclass(slots=True)
class SparsePieces:
    """Collects the sparse vectors of W windows, pack by pack; the last piece with a window counts."""

    num_windows: int
    _pieces: list[tuple[Index, Index, NDArray[np.int32], NDArray[np.float32]]] = field(default_factory=list)

    def add(self, windows: Index, rows: Any) -> None:
        """Add the vectors of some windows: `rows` has counts (w,), ids and weights as tensors."""
        arrays = (rows.counts, rows.ids, rows.weights)
        counts, ids, weights = (tensor.numpy(force=True) for tensor in arrays)
        self._pieces.append((windows, starts_of(counts), ids, weights))

    def join(self) -> SparseVectors:
        """The vectors of all windows, in their order; windows without a piece have none."""
        owner = np.full(self.num_windows, -1)
        counts = np.zeros(self.num_windows, np.int64)
        for number, (windows, offsets, _, _) in enumerate(self._pieces):
            owner[windows], counts[windows] = number, np.diff(offsets)
        joined = starts_of(counts)
        ids, weights = np.empty(joined[-1], np.int32), np.empty(joined[-1], np.float32)
        for number, (windows, offsets, own_ids, own_weights) in enumerate(self._pieces):
            places = np.flatnonzero(owner[windows] == number)
            source, target = token_index(offsets, places), token_index(joined, windows[places])
            ids[target], weights[target] = own_ids[source], own_weights[source]
        return SparseVectors(joined, ids, weights)
