"""The index definitions that the documents fit: one for OpenSearch, one for Elasticsearch.

Knows nothing of requests. The names and limits are those of OpenSearch 2.19 and Elasticsearch 8.15, or later.
"""

import math
from typing import Any

import pyarrow as pa

from varve.errors import JobError
from varve.indexing.rows import ITEM, POSITION, ROW, SHARD
from varve.indexing.source import SPARSE, IndexSource

_OPENSEARCH_DIMENSIONS, ELASTICSEARCH_DIMENSIONS = 16_000, 4096
# Lucene's cosine accepts vectors of all lengths; the inner product of unit vectors is the cosine, and faster.
_SPACES = {"dot": ("faiss", "innerproduct"), "euclidean": ("faiss", "l2"), "cosine": ("lucene", "cosinesimil")}
_SIMILARITIES = {"dot": "max_inner_product", "euclidean": "l2_norm", "cosine": "cosine"}
_BYTES_PER_VALUE = 20  # text of the value in the stored document, and the value in the index
_SHARD_BYTES = 30e9
_RESERVED = frozenset(
    {"_doc_count", "_field_names", "_id", "_ignored", "_index", "_nested_path", "_routing", "_size", "_source", "_tier"}
)


def check_mapping(source: IndexSource) -> None:
    """Refuse features and columns that neither server can hold.

    Raises:
        JobError: with the name of the feature or column.
    """
    name, width = source.column.name, source.width
    if source.kind != SPARSE and width > _OPENSEARCH_DIMENSIONS:
        msg = f"{name} has {width:,} dimensions: OpenSearch holds at most {_OPENSEARCH_DIMENSIONS:,}"
        raise JobError(msg)
    if source.column.dtype == "binary" and width % 8:
        msg = f"{name} has {width} bits: OpenSearch and Elasticsearch need a multiple of 8"
        raise JobError(msg)
    for column in (name, *source.columns):
        if column in _RESERVED or column.startswith(".") or column.endswith(".") or ".." in column:
            msg = f"{column!r} cannot be the name of a field in OpenSearch or Elasticsearch. Rename it in the job file"
            raise JobError(msg)


def opensearch_mapping(source: IndexSource, key: str | None) -> dict[str, Any]:
    """The body of the request that creates an index of OpenSearch."""
    settings = {"number_of_shards": _num_shards(source)}
    if source.kind == SPARSE:
        return _body(source, key, {"type": "rank_features"}, settings)
    if source.column.dtype == "binary":
        method = {"name": "hnsw", "engine": "faiss", "space_type": "hamming"}
        field = {"type": "knn_vector", "dimension": source.width, "data_type": "binary", "method": method}
        return _body(source, key, field, settings | {"knn": True})
    metric = "dot" if source.metric.unit else source.metric.name
    engine, space = _SPACES[metric]
    method = {"name": "hnsw", "engine": engine, "space_type": space}
    field = {"type": "knn_vector", "dimension": source.width, "method": method}
    return _body(source, key, field, settings | {"knn": True})


def elasticsearch_mapping(source: IndexSource, key: str | None) -> dict[str, Any] | None:
    """The body of the request that creates an index of Elasticsearch; None: the vectors are too wide for it."""
    settings = {"number_of_shards": _num_shards(source)}
    if source.kind == SPARSE:
        return _body(source, key, {"type": "sparse_vector"}, settings)
    if source.width > ELASTICSEARCH_DIMENSIONS:
        return None
    field = {"type": "dense_vector", "dims": source.width, "index": True}
    if source.column.dtype == "binary":
        return _body(source, key, field | {"element_type": "bit"}, settings)
    return _body(source, key, field | {"similarity": _SIMILARITIES[source.metric.name]}, settings)


def _body(source: IndexSource, key: str | None, vectors: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    places = {name: {"type": "long"} for name in (POSITION, SHARD, ROW, *([ITEM] if source.has_items else []))}
    kept = {name: _field(source.output.schema.field(name).type, is_key=name == key) for name in source.columns}
    fields = places | {name: field for name, field in kept.items() if field} | {source.column.name: vectors}
    return {"settings": {"index": settings}, "mappings": {"properties": fields}}


def _field(kind: pa.DataType, *, is_key: bool) -> dict[str, Any] | None:
    """The field of a kept column; None: the server chooses it from the first value."""
    kind = kind.value_type if isinstance(kind, pa.DictionaryType) else kind
    if is_key:
        return {"type": "keyword"}
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return {"type": "text", "fields": {"keyword": {"type": "keyword", "ignore_above": 256}}}
    if pa.types.is_boolean(kind):
        return {"type": "boolean"}
    if pa.types.is_integer(kind):
        return {"type": "unsigned_long" if kind == pa.uint64() else "long"}
    if pa.types.is_floating(kind):
        return {"type": "double"}
    return {"type": "date"} if pa.types.is_timestamp(kind) or pa.types.is_date(kind) else None


def _num_shards(source: IndexSource) -> int:
    """Primary shards of at most 30 GB, about; sparse vectors have some 200 values."""
    values = 200 if source.kind == SPARSE else source.width
    return max(1, math.ceil(source.num_vectors * values * _BYTES_PER_VALUE / _SHARD_BYTES))
