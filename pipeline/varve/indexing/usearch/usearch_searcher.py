"""Approximate search in graphs that are mapped into memory; the results of several graphs are merged.

Invariant: every position is in one graph.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.errors import RunError, one_line
from varve.indexing.index_folder import IndexFolder
from varve.indexing.metric import Metric
from varve.indexing.neighbours import Neighbours
from varve.indexing.rows import Vectors
from varve.indexing.usearch.usearch_kind import EXPANSION


@dataclass(frozen=True, slots=True, eq=False)
class UsearchSearcher:
    """Opened graphs.

    Attributes:
        folder: of the index.
        metric: how vectors are compared.
        graphs: `usearch.index.Index` of each file.
        starts: first position of each graph, ascending.
        exact: the graphs hold the values of the output.
    """

    folder: IndexFolder
    metric: Metric
    graphs: Sequence[Any]
    starts: NDArray[np.int64]
    exact: bool

    def search(self, queries: Vectors, k: int, setting: Mapping[str, int]) -> Neighbours:
        """The k nearest vectors of each query that the graphs find; see `Searcher`."""
        assert isinstance(queries, np.ndarray)
        asked = np.ascontiguousarray(queries, dtype=np.float32)
        return Neighbours.merge([self._search(graph, asked, k, setting) for graph in self.graphs])

    def _search(self, graph: Any, queries: NDArray[np.float32], k: int, setting: Mapping[str, int]) -> Neighbours:
        # More candidates than vectors find nothing else, but USearch allocates them.
        graph.expansion_search = max(1, min(max(setting.get(EXPANSION, 0), k), len(graph)))
        try:
            matches = graph.search(queries, min(k, len(graph)), threads=1)
        except RuntimeError as e:
            msg = f"{self.folder.storage.uri} is damaged: {one_line(e)}. Build the index again"
            raise RunError(msg) from e
        keys, distances = (np.atleast_2d(each) for each in (matches.keys, matches.distances))
        counts = np.atleast_1d(getattr(matches, "counts", keys.shape[1]))
        missing = np.arange(keys.shape[1]) >= counts[:, None]
        scores = -distances if self.metric.name == "euclidean" else 1 - distances
        found = Neighbours.none(len(queries), k)
        found.positions[:, : keys.shape[1]] = np.where(missing, -1, keys.astype(np.int64))
        found.scores[:, : keys.shape[1]] = np.where(missing, -np.inf, scores)
        return found

    def rows(self, positions: NDArray[np.int64]) -> pa.Table:
        """The columns of `IndexRows.ids`; see `Searcher`."""
        return self.folder.rows(positions)

    def dense_at(self, positions: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """(N, width) float32 vectors of N positions, if the graphs hold exact values; see `Searcher`."""
        if not self.exact:
            return None
        found = np.zeros((len(positions), self.graphs[0].ndim), np.float32)
        graph_of = np.searchsorted(self.starts, positions, side="right") - 1
        for graph in np.unique(graph_of):
            here = graph_of == graph
            found[here] = self.graphs[graph].get(positions[here].astype(np.uint64))
        return found
