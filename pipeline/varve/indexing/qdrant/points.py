"""The vectors of a part as batches of points, and points as vectors.

Invariant: float32 values reach the server as JSON numbers that are parsed to the same bits.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varve.encoder.ragged import Ragged
from varve.indexing.qdrant.payload import point_ids, write_payloads
from varve.indexing.rows import IndexRows, SparseVectors, Vectors

# A batch is a few MB of JSON; the server refuses more than 32 MB.
_BATCH_ROWS, _BATCH_VALUES = 256, 200_000


def batches(rows: IndexRows, key: str | None, vector_name: str) -> Iterator[Any]:
    """The points of one part in groups that fit one request (`models.Batch` or a list of `models.PointStruct`)."""
    from qdrant_client import models  # noqa: PLC0415

    for some in _slices(rows.vectors):
        ids = rows.ids.slice(some.start, some.stop - some.start)
        keys, payloads = point_ids(ids, key), write_payloads(ids)
        if isinstance(rows.vectors, np.ndarray):
            yield models.Batch(ids=keys, vectors=list(rows.vectors[some]), payloads=payloads)  # pyright: ignore[reportArgumentType]
            continue
        points = zip(keys, range(some.start, some.stop), payloads, strict=True)
        yield [
            models.PointStruct(id=i, vector=_vector(rows.vectors, at, vector_name), payload=p) for i, at, p in points
        ]


def query_of(queries: Vectors, at: int) -> Any:
    """One query as the client takes it; None if it has no token, for which the server has no form."""
    if isinstance(queries, np.ndarray):
        return queries[at].tolist()
    if isinstance(queries, SparseVectors):
        return _sparse(queries, at)
    return queries[at].tolist() or None


def read_vectors(stored: Sequence[Any], vector_name: str, *, sparse: bool, width: int) -> list[NDArray]:
    """The arrays of the vectors of points: (width,), (tokens, width), or (2, n) of ids and weights."""
    if sparse:
        found = [vector[vector_name] for vector in stored]
        return [np.array([each.indices, each.values], np.float64) for each in found]
    return [np.array(vector or np.zeros((0, width)), np.float32) for vector in stored]


def arrays_of(vectors: Vectors) -> list[NDArray]:
    """The arrays of vectors of the source, in the form of `read_vectors`."""
    if isinstance(vectors, SparseVectors):
        pairs = ((vectors.ids[at], vectors.weights[at]) for at in range(len(vectors)))
        return [np.array([ids, weights], np.float64) for ids, weights in pairs]
    return [np.asarray(vectors[at], np.float32) for at in range(len(vectors))]


def _vector(vectors: Vectors, at: int, vector_name: str) -> Any:
    if isinstance(vectors, SparseVectors):
        return {vector_name: _sparse(vectors, at)}
    assert isinstance(vectors, Ragged)
    return vectors[at].tolist() or {}  # the server refuses a list without tokens


def _sparse(vectors: SparseVectors, at: int) -> Any:
    from qdrant_client import models  # noqa: PLC0415

    return models.SparseVector(indices=vectors.ids[at].tolist(), values=vectors.weights[at].tolist())


def _slices(vectors: Vectors) -> Iterator[slice]:
    """Consecutive rows of at most `_BATCH_ROWS` rows and about `_BATCH_VALUES` values."""
    ends = np.cumsum(_sizes(vectors))
    start = 0
    while start < len(vectors):
        before = int(ends[start - 1]) if start else 0
        fitting = int(np.searchsorted(ends, before + _BATCH_VALUES, side="right"))
        stop = min(max(fitting, start + 1), start + _BATCH_ROWS)
        yield slice(start, stop)
        start = stop


def _sizes(vectors: Vectors) -> NDArray[np.int64]:
    if isinstance(vectors, np.ndarray):
        return np.full(len(vectors), vectors.shape[1], np.int64)
    if isinstance(vectors, SparseVectors):
        return 2 * np.diff(vectors.ids.offsets)
    return np.diff(vectors.offsets) * int(vectors.values.shape[1])
