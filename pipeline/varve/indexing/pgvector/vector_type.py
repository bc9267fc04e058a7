"""The PostgreSQL type of a feature's vectors, and the operator that compares them.

Invariants: of two scores the higher one belongs to the nearer vector; the type is a function of the source and of
whether the index is a graph.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varve.encoder.ragged import Ragged
from varve.indexing.metric import Metric
from varve.indexing.pgvector.client import pgvector
from varve.indexing.rows import SparseVectors, Vectors
from varve.indexing.source import SPARSE, IndexSource

VECTOR, HALFVEC, BIT, SPARSEVEC = "vector", "halfvec", "bit", "sparsevec"
MAX_WIDTH = {VECTOR: 16_000, HALFVEC: 16_000, BIT: 64_000, SPARSEVEC: 10**9}
MAX_GRAPH_WIDTH = {VECTOR: 2000, HALFVEC: 4000, BIT: 64_000, SPARSEVEC: 10**9}
MAX_GRAPH_NONZERO = 1000
_OPERATORS = {"dot": ("<#>", "ip"), "cosine": ("<=>", "cosine"), "euclidean": ("<->", "l2")}


@dataclass(frozen=True, slots=True)
class VectorType:
    """How vectors are stored and compared.

    Attributes:
        name: vector, halfvec, bit or sparsevec.
        width: dimensions.
        metric: of the feature.
        exact: the stored values are those of the source.
    """

    name: str
    width: int
    metric: Metric
    exact: bool

    @property
    def declaration(self) -> str:
        """The type of the column."""
        return f"{self.name}({self.width})"

    @property
    def comparison(self) -> str:
        """dot, cosine or euclidean. Vectors of length 1 are compared by their dot product, which is their cosine."""
        return "dot" if self.metric.name == "cosine" and self.metric.unit else self.metric.name

    @property
    def operator(self) -> str:
        """The distance, by which a query orders."""
        return "<~>" if self.name == BIT else _OPERATORS[self.comparison][0]

    @property
    def operator_class(self) -> str:
        """Of an index for that operator."""
        return "bit_hamming_ops" if self.name == BIT else f"{self.name}_{_OPERATORS[self.comparison][1]}_ops"

    def value_bytes(self, nonzero: float = 0) -> float:
        """Size of one stored value; of a sparse one with this number of weights."""
        return {
            VECTOR: 8 + 4 * self.width,
            HALFVEC: 8 + 2 * self.width,
            BIT: 8 + -(-self.width // 8),
            SPARSEVEC: 16 + 8 * nonzero,
        }[self.name]

    def scores(self, distances: NDArray[np.float64]) -> NDArray[np.float32]:
        """(N,) scores of distances that the operator returned; NaN, the cosine of a zero vector, is 0."""
        if self.name == BIT:
            same = self.width - 2 * distances
            scores = {"dot": same, "cosine": same / self.width, "euclidean": -4 * distances}[self.metric.name]
        else:
            scores = {"dot": -distances, "cosine": 1 - distances, "euclidean": -np.square(distances)}[self.comparison]
        return np.nan_to_num(scores, nan=0.0).astype(np.float32)

    def parameter(self, queries: Vectors) -> Any:
        """The only one of these queries, as psycopg sends it."""
        assert not isinstance(queries, Ragged), "late interaction is not supported"
        query = queries if isinstance(queries, SparseVectors) else queries[0]
        if isinstance(query, SparseVectors):
            weights = dict(zip(query.ids[0].tolist(), query.weights[0].tolist(), strict=True))
            return pgvector.SparseVector({i: w for i, w in weights.items() if w}, self.width)
        if self.name == BIT:
            return pgvector.Bit((query > 0).tolist())
        return pgvector.Vector(query) if self.name == VECTOR else pgvector.HalfVector(query.astype(np.float16))


def choose_type(source: IndexSource, *, is_graph: bool) -> VectorType:
    """The type of a source's vectors.

    Args:
        source: dense or sparse.
        is_graph: whether an HNSW index is built, which holds float32 up to 2,000 dimensions.
    """
    dtype, wide = source.column.dtype, is_graph and source.width > MAX_GRAPH_WIDTH[VECTOR]
    if source.kind == SPARSE:
        name = SPARSEVEC
    elif dtype == "binary":
        name = BIT
    else:
        name = HALFVEC if dtype == "float16" or wide else VECTOR
    return VectorType(name, source.width, source.metric, exact=name != HALFVEC or dtype == "float16")
