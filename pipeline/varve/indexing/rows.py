"""The rows of one part as an index receives them: vectors, and what identifies each of them.

Invariant: vector i of a part has position `first + i`, and row i of `ids` describes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.encoder.ragged import Ragged

# The columns of `IndexRows.ids` before the kept columns.
POSITION, SHARD, ROW, ITEM = "position", "shard", "row", "item"


@dataclass(frozen=True, slots=True)
class SparseVectors:
    """N sparse vectors: vector i has weight `weights[i][j]` in dimension `ids[i][j]`, ids ascending."""

    ids: Ragged  # int32
    weights: Ragged  # float32, same offsets

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def width(self) -> int:
        """One more than the largest id."""
        return int(self.ids.values.max()) + 1 if len(self.ids.values) else 0


# (N, width) float32; sparse; or for late interaction N lists of (tokens, width) float32.
Vectors = NDArray[np.float32] | SparseVectors | Ragged


@dataclass(frozen=True, slots=True)
class IndexRows:
    """The vectors of one part of the output. Rows with an error have none.

    Attributes:
        part: number of the part in the manifest's order.
        first: position of the first vector.
        vectors: decoded; float16 and int8 values as float32, binary ones as -1 and +1.
        ids: one row per vector: position int64, shard int32, row int64, then, if a row of the output holds several
            vectors, item int32 (number of the window or chunk in its row), then the kept columns.
    """

    part: int
    first: int
    vectors: Vectors
    ids: pa.Table

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def dense(self) -> NDArray[np.float32]:
        """(N, width) float32 of a dense feature."""
        assert isinstance(self.vectors, np.ndarray)
        return self.vectors

    @property
    def positions(self) -> NDArray[np.int64]:
        """(N,) consecutive positions."""
        return np.arange(self.first, self.first + len(self), dtype=np.int64)


def take(vectors: Vectors, rows: NDArray[np.int64] | slice) -> Vectors:
    """Some of the vectors, in the given order."""
    if isinstance(vectors, np.ndarray):
        return vectors[rows]
    chosen = np.arange(len(vectors))[rows]
    if isinstance(vectors, Ragged):
        return _take_lists(vectors, chosen)
    return SparseVectors(_take_lists(vectors.ids, chosen), _take_lists(vectors.weights, chosen))


def _take_lists(lists: Ragged, rows: NDArray[np.int64]) -> Ragged:
    starts, lengths = lists.offsets[:-1][rows], np.diff(lists.offsets)[rows]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    at = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    return Ragged(lists.values[at], offsets)


def concatenate(vectors: Sequence[Vectors]) -> Vectors:
    """Several blocks of vectors of the same feature as one; at least one block."""
    first = vectors[0]
    if isinstance(first, np.ndarray):
        return np.concatenate([each for each in vectors if isinstance(each, np.ndarray)])
    if isinstance(first, Ragged):
        return _join([each for each in vectors if isinstance(each, Ragged)])
    sparse = [each for each in vectors if isinstance(each, SparseVectors)]
    return SparseVectors(_join([each.ids for each in sparse]), _join([each.weights for each in sparse]))


def _join(lists: Sequence[Ragged]) -> Ragged:
    lengths = np.concatenate([np.diff(each.offsets) for each in lists])
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return Ragged(np.concatenate([each.values for each in lists]), offsets)
