"""Queries of a Lance dataset, staged or published."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.encoder.ragged import Ragged
from varve.errors import RunError, one_line
from varve.indexing.lance.layout import VECTOR
from varve.indexing.metric import Metric
from varve.indexing.neighbours import Neighbours
from varve.indexing.rows import POSITION, SparseVectors, Vectors

if TYPE_CHECKING:
    from lance import LanceDataset

_DISTANCE = "_distance"


def lance_metric(metric: Metric) -> str:
    """Lance's name of a metric."""
    if metric.name == "cosine":
        return "dot" if metric.unit else "cosine"
    return {"dot": "dot", "maxsim": "dot", "euclidean": "l2"}[metric.name]


@dataclass(frozen=True, slots=True)
class LanceSearcher:
    """Answers queries from a dataset whose row p is position p."""

    dataset: "LanceDataset"
    metric: Metric
    width: int

    def search(self, queries: Vectors, k: int, setting: Mapping[str, int]) -> Neighbours:
        """See `Searcher.search`.

        Raises:
            RunError: the dataset cannot be read.
        """
        assert not isinstance(queries, SparseVectors)
        result = Neighbours.none(len(queries), k)
        for at in range(len(queries)):
            query = np.ascontiguousarray(queries[at], np.float32)
            if not query.size:
                continue
            found = self._nearest(query, k, setting)
            positions, distances = found[POSITION].to_numpy(), found[_DISTANCE].to_numpy()
            result.positions[at, : len(positions)] = positions
            result.scores[at, : len(positions)] = self._scores(distances, query)
        return result

    def _nearest(self, query: NDArray[np.float32], k: int, setting: Mapping[str, int]) -> pa.Table:
        # Lance warns on stderr at each search that does not ask for the distance.
        nearest = {"column": VECTOR, "q": query, "k": k, "metric": lance_metric(self.metric), **setting}
        try:
            return self.dataset.to_table(columns=[POSITION, _DISTANCE], nearest=nearest)
        except (OSError, ValueError, RuntimeError) as e:
            msg = f"{self.dataset.uri} cannot be searched: {one_line(e)}"
            raise RunError(msg) from e

    def _scores(self, distances: NDArray[np.float32], query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Lance's distance is 1 - similarity, of late interaction summed over the tokens of the query."""
        if self.metric.name == "euclidean":
            return -distances
        return (len(query) if query.ndim > 1 else 1) - distances

    def rows(self, positions: NDArray[np.int64]) -> pa.Table:
        """See `Searcher.rows`."""
        names = [name for name in self.dataset.schema.names if name != VECTOR]
        return self._take(positions, names)

    def dense_at(self, positions: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """See `Searcher.dense_at`; None for late interaction."""
        if self.metric.name == "maxsim":
            return None
        values = self._take(positions, [VECTOR])[VECTOR].combine_chunks().flatten()
        return values.to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(positions), self.width)

    def late_at(self, positions: NDArray[np.int64]) -> Ragged:
        """The stored token vectors of texts, float32."""
        lists = self._take(positions, [VECTOR])[VECTOR].combine_chunks()
        offsets = np.concatenate([[0], np.cumsum(np.diff(lists.offsets.to_numpy()))]).astype(np.int64)
        values = lists.flatten().flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        return Ragged(values.reshape(-1, self.width), offsets)

    def _take(self, positions: NDArray[np.int64], names: list[str]) -> pa.Table:
        try:
            return self.dataset.take(positions.tolist(), columns=names)
        except (OSError, ValueError, IndexError) as e:
            msg = f"{self.dataset.uri} cannot be read: {one_line(e)}"
            raise RunError(msg) from e
