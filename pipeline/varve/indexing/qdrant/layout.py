"""How a feature is stored in a collection: which vector, which distance, which payload."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa

from varve.errors import RunError
from varve.indexing.qdrant.payload import ids_schema
from varve.indexing.qdrant.qdrant_kind import is_half
from varve.indexing.source import LATE, SPARSE, IndexSource

_DISTANCES = {"dot": "DOT", "maxsim": "DOT", "euclidean": "EUCLID"}


@dataclass(frozen=True, slots=True)
class Layout:
    """How a feature is stored in a collection; a published index records it.

    Attributes:
        kind: dense, sparse or late.
        width: of a dense or late vector.
        metric: name of the metric (`indexing.metric.Metric`).
        exact: the server holds the values of the source; it normalizes vectors that are compared by its own cosine.
        vector: name of the vector; "" is the default one.
        schema: of `IndexRows.ids`.
    """

    kind: str
    width: int
    metric: str
    exact: bool
    vector: str
    schema: pa.Schema

    @classmethod
    def of(cls, source: IndexSource) -> Self:
        """The layout of a feature: sparse vectors have the name of the feature, others are the default vector."""
        kept = [source.output.schema.field(name).remove_metadata() for name in source.columns]
        schema = ids_schema(kept, has_items=source.has_items)
        vector = source.column.name if source.kind == SPARSE else ""
        exact = not source.metric.normalizes
        return cls(source.kind, source.width, source.metric.name, exact, vector, schema)

    def to_json(self) -> dict[str, Any]:
        """JSON values; the schema in Arrow's IPC form, as base64."""
        schema = base64.b64encode(self.schema.serialize().to_pybytes()).decode()
        names = ("kind", "width", "metric", "exact", "vector")
        return {name: getattr(self, name) for name in names} | {"schema": schema}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The opposite of `to_json`.

        Raises:
            RunError: a value is missing.
        """
        try:
            schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(content["schema"])))
            return cls(**{**content, "schema": schema})
        except (KeyError, TypeError, ValueError, pa.ArrowException) as e:
            msg = f"the layout of a Qdrant index cannot be read: {type(e).__name__} {e}"
            raise RunError(msg) from e


def vector_params(source: IndexSource) -> dict[str, Any]:
    """The vectors of the collection, as `QdrantClient.create_collection` takes them."""
    from qdrant_client import models  # noqa: PLC0415

    if source.kind == SPARSE:
        return {"vectors_config": {}, "sparse_vectors_config": {source.column.name: models.SparseVectorParams()}}
    metric = source.metric
    distance = "COSINE" if metric.normalizes else _DISTANCES["dot" if metric.name == "cosine" else metric.name]
    late = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM) if source.kind == LATE else None
    params = models.VectorParams(
        size=source.width,
        distance=models.Distance[distance],
        datatype=models.Datatype.FLOAT16 if is_half(source) else None,
        multivector_config=late,
    )
    return {"vectors_config": params}
