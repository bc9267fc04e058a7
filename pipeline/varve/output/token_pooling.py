"""Token pooling of late-interaction vectors: similar tokens of a text become one vector, before a part is written.

Knows a part's table and the declared settings; no models. Runs there because clustering needs a CPU for longer than a
GPU needs to encode. Invariants: rows stay rows, null rows stay null; a text's vectors depend on this text alone.
Source: Clavié et al. 2024, Reducing the Footprint of Multi-Vector Retrieval with Minimal Performance Impact via Token
Pooling; computed as `HierarchicalTokenPooling` of sentence-transformers 6.2 with scipy.
"""

from collections.abc import Mapping
from importlib.util import find_spec

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.encoder.checkpoint.declaration import TokenPooling
from varve.encoder.feature_plan import Column
from varve.encoder.postprocessing import normalize, quantize
from varve.encoder.ragged import Ragged
from varve.errors import JobError
from varve.output.schema import feature_columns, vector_length
from varve.output.vectors import read_vector_lists

Floats = NDArray[np.float32]


def check_token_pooling() -> None:
    """Check that the library that clusters is installed.

    Raises:
        JobError: scipy is missing.
    """
    if find_spec("scipy") is None:
        msg = (
            "token pooling needs scipy, here and on every node: run pip install '.[late]' in Varve's folder, or remove "
            "token_pooling"
        )
        raise JobError(msg)


def pool_tokens(table: pa.Table, poolings: Mapping[str, TokenPooling]) -> pa.Table:
    """Pool the tokens of each row.

    int8 and binary vectors are decoded, pooled, and quantized again.

    Args:
        table: rows of a part, with the metadata of its schema.
        poolings: column of the form "clusters", which holds one vector per token → settings.
    """
    if not poolings:
        return table
    columns = {column.name: column for column in feature_columns(table.schema)}
    for name, pooling in poolings.items():
        for stored, cells in _pool_column(table, columns[name], pooling).items():
            index = table.schema.get_field_index(stored)
            table = table.set_column(index, table.schema.field(index), cells)
    return table


def _pool_column(table: pa.Table, column: Column, pooling: TokenPooling) -> dict[str, pa.Array]:
    """Stored name → the pooled vectors and, for int8, their scales."""
    tokens = read_vector_lists(table, column)
    if column.dtype == "binary":  # the cosine distance is that of vectors of length 1
        tokens = Ragged(normalize(tokens.values), tokens.offsets)
    pooled = pool_rows(tokens, pooling)
    vectors, scales = quantize(pooled.values, column.dtype)
    types = {name: table.schema.field(name).type for name in column.stored_names}
    flat = pa.array(vectors.reshape(-1), types[column.name].value_type.value_type)
    children = {column.name: pa.FixedSizeListArray.from_arrays(flat, type=types[column.name].value_type)}
    assert vectors.shape[1] == vector_length(column)
    if scales is not None and column.scale_name:
        children[column.scale_name] = pa.array(scales)
    offsets, missing = pa.array(pooled.offsets.astype(np.int32)), table[column.name].combine_chunks().is_null()
    return {
        name: pa.ListArray.from_arrays(offsets, child, type=types[name], mask=missing)
        for name, child in children.items()
    }


def pool_rows(tokens: Ragged, pooling: TokenPooling) -> Ragged:
    """Pool the vectors of each of R rows.

    Args:
        tokens: (N, D) float32 vectors of the tokens.
        pooling: settings.

    Returns:
        (C, D) float32 vectors: of each row the protected tokens, then the means of its clusters.
    """
    lengths = np.diff(tokens.offsets)
    if pooling.factor <= 1:
        means, offsets = tokens.values, tokens.offsets
    else:
        clusters, counts = np.empty(len(tokens.values), np.int64), np.zeros(len(lengths), np.int64)
        for row in np.flatnonzero(lengths).tolist():  # scipy clusters one text at a time
            labels = cluster_tokens(tokens[row], pooling)
            clusters[tokens.offsets[row] : tokens.offsets[row + 1]] = labels
            counts[row] = labels.max() + 1
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        means = _means(tokens.values, clusters + np.repeat(offsets[:-1], lengths))
    return Ragged(normalize(means) if pooling.normalize else means, offsets)


def cluster_tokens(vectors: Floats, pooling: TokenPooling) -> NDArray[np.int64]:
    """Cluster the tokens of one text by Ward's method on the cosine distance.

    Args:
        vectors: (N, D) float32 of length 1.
        pooling: settings.

    Returns:
        (N,) the cluster of each token, from 0; each protected token is one of its own.
    """
    protected = np.arange(min(pooling.protected, len(vectors)))
    others = vectors[len(protected) :]
    num_clusters = max(int(len(others) // pooling.factor), 1)
    if num_clusters >= len(others):
        return np.arange(len(vectors))
    from scipy.cluster import hierarchy  # noqa: PLC0415 (an extra, see `check_token_pooling`)

    distances = np.clip(1 - others @ others.T, 0, 2)[np.triu_indices(len(others), 1)]
    labels = hierarchy.fcluster(hierarchy.linkage(distances, "ward"), num_clusters, "maxclust")
    # Ties can leave numbers without tokens.
    numbers = np.unique(labels, return_inverse=True)[1]
    return np.concatenate([protected, len(protected) + numbers])


def _means(vectors: Floats, clusters: NDArray[np.int64]) -> Floats:
    """(C, D) mean of the vectors of each of C clusters, numbered without gaps."""
    order = np.argsort(clusters, kind="stable")
    starts = np.flatnonzero(np.diff(clusters[order], prepend=-1))
    if not len(starts):
        return vectors
    sums = np.add.reduceat(vectors[order], starts, axis=0)
    counts = np.diff(starts, append=len(order)).astype(np.float32)
    return (sums / counts[:, None]).astype(np.float32, copy=False)
