"""The rows of one part as an index receives them: vectors, and what identifies each of them.

Invariant: vector i of a part has position `first + i`, and row i of `ids` describes it.
"""

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
