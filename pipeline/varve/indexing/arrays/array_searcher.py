"""Exact search over array files that are mapped into memory.

Invariants: the neighbours are those of a full sort; memory is bounded by a block of rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.indexing.arrays.array_format import ArrayFormat
from varve.indexing.index_folder import IndexFolder
from varve.indexing.metric import Metric
from varve.indexing.neighbours import Neighbours, nearest
from varve.indexing.rows import Vectors

_BLOCK_BYTES = 2**26  # of decoded vectors


@dataclass(frozen=True, slots=True, eq=False)
class ArraySearcher:
    """Opened array files.

    Attributes:
        folder: of the index.
        format: of the files.
        metric: how vectors are compared.
        files: (N, values per row) stored values of each file.
    """

    folder: IndexFolder
    format: ArrayFormat
    metric: Metric
    files: Sequence[NDArray]

    def search(self, queries: Vectors, k: int, setting: Mapping[str, int]) -> Neighbours:  # noqa: ARG002 (exact)
        """The k nearest vectors of each query; see `Searcher`."""
        found = Neighbours.none(len(queries), k)
        for first, block in self._blocks():
            near = nearest(queries, block, first, k, self.metric, floor=found.scores[:, -1])
            found = Neighbours.merge([found, near])
        return found

    def _blocks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(position of the first vector, vectors) of all files."""
        rows = max(1, _BLOCK_BYTES // (4 * self.format.width))
        for number, file in enumerate(self.files):
            first = self.format.positions(number).start
            for start in range(0, len(file), rows):
                yield first + start, self.format.decode(file[start : start + rows])

    def rows(self, positions: NDArray[np.int64]) -> pa.Table:
        """The columns of `IndexRows.ids`; see `Searcher`."""
        return self.folder.rows(positions)

    def dense_at(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """(N, width) float32 vectors of N positions; see `Searcher`."""
        stored = np.zeros((len(positions), self.format.values_per_row), self.format.dtype)
        file_of = positions // self.format.rows_per_file
        for file in np.unique(file_of):
            here = file_of == file
            stored[here] = self.files[file][positions[here] % self.format.rows_per_file]
        return self.format.decode(stored)
