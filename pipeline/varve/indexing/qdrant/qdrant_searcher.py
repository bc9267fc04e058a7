"""Queries of a collection, staged or published."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.encoder.ragged import Ragged
from varve.indexing.neighbours import Neighbours
from varve.indexing.qdrant.collection import Collection
from varve.indexing.qdrant.layout import Layout
from varve.indexing.qdrant.payload import read_payloads
from varve.indexing.qdrant.points import query_of, read_vectors
from varve.indexing.rows import POSITION, Vectors
from varve.indexing.source import DENSE, SPARSE

_QUERIES_PER_REQUEST, _LATE_QUERIES_PER_REQUEST = 64, 8


@dataclass(frozen=True, slots=True)
class QdrantSearcher:
    """Answers queries from a collection."""

    collection: Collection
    layout: Layout

    def search(self, queries: Vectors, k: int, setting: Mapping[str, int]) -> Neighbours:
        """See `Searcher.search`; texts that share no word with a sparse query are not found."""
        result = Neighbours.none(len(queries), k)
        encoded = [(at, query_of(queries, at)) for at in range(len(queries))]
        asked = [(at, query) for at, query in encoded if query is not None]
        size = _LATE_QUERIES_PER_REQUEST if isinstance(queries, Ragged) else _QUERIES_PER_REQUEST
        for start in range(0, len(asked), size):
            some = asked[start : start + size]
            using = self.layout.vector or None
            answers = self.collection.search([query for _, query in some], k, using, dict(setting))
            for (at, _), points in zip(some, answers, strict=True):
                result.positions[at, : len(points)] = [point.payload[POSITION] for point in points]
                result.scores[at, : len(points)] = self._scores(np.array([point.score for point in points], np.float32))
        return result

    def _scores(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        return -(scores**2) if self.layout.metric == "euclidean" else scores

    def rows(self, positions: NDArray[np.int64]) -> pa.Table:
        """See `Searcher.rows`."""
        unique, inverse = np.unique(positions, return_inverse=True)
        payloads = [point.payload for point in self.collection.points(unique, vectors=False)]
        return read_payloads(payloads, self.layout.schema).take(pa.array(inverse))

    def dense_at(self, positions: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """See `Searcher.dense_at`; None if the server normalizes vectors."""
        if self.layout.kind != DENSE or not self.layout.exact:
            return None
        unique, inverse = np.unique(positions, return_inverse=True)
        found = self.arrays(unique)
        return (np.stack(found) if found else np.zeros((0, self.layout.width), np.float32))[inverse]

    def arrays(self, positions: NDArray[np.int64]) -> list[NDArray]:
        """The stored vectors of ascending positions (`points.read_vectors`)."""
        stored = [point.vector for point in self.collection.points(positions, vectors=True)]
        sparse = self.layout.kind == SPARSE
        return read_vectors(stored, self.layout.vector, sparse=sparse, width=self.layout.width)
