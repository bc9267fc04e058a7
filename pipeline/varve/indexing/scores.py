"""Exact scores of queries and stored vectors: dense, sparse and late interaction; the higher, the nearer.

Scores of a whole block choose candidates; float64 scores of single pairs decide. Two equal vectors have equal scores,
in whichever block they are, so ties are real ties.
"""

import numpy as np
from numpy.typing import NDArray

from varve.encoder.ragged import Ragged
from varve.indexing.metric import Metric, to_unit_length
from varve.indexing.rows import SparseVectors, Vectors, take

# Sum of `width` float32 products, against the exact sum: relative to the lengths of both vectors.
_EPSILON = float(np.finfo(np.float32).eps)


def block_scores(queries: Vectors, vectors: Vectors, metric: Metric) -> tuple[NDArray[np.float32], float]:
    """Approximate scores of all pairs.

    Args:
        queries: Q, prepared (`Metric.prepare`).
        vectors: N, prepared.
        metric: how they are compared.

    Returns:
        (Q, N) float32 scores, and a bound of the error of each.
    """
    if isinstance(queries, np.ndarray) and isinstance(vectors, np.ndarray):
        scores = queries @ vectors.T
        lengths = float(_max_norm(queries)) * float(_max_norm(vectors))
        if metric.name == "euclidean":
            squares = np.einsum("nd,nd->n", vectors, vectors)
            scores = 2 * scores - squares - np.einsum("qd,qd->q", queries, queries)[:, None]
            lengths = 4 * max(lengths, float(_max_norm(queries)) ** 2, float(_max_norm(vectors)) ** 2)
        return scores, _EPSILON * queries.shape[1] * lengths
    scores = _list_scores(queries, vectors)
    return scores.astype(np.float32), 16 * _EPSILON * float(abs(scores).max(initial=0))


def pair_scores(queries: Vectors, vectors: Vectors, metric: Metric) -> NDArray[np.float32]:
    """(N,) scores of N pairs, computed in float64: query i with vector i, both prepared."""
    if isinstance(queries, np.ndarray) and isinstance(vectors, np.ndarray):
        one, other = queries.astype(np.float64), vectors.astype(np.float64)
        if metric.name == "euclidean":
            one -= other
            return -np.einsum("nd,nd->n", one, one).astype(np.float32)
        return np.einsum("nd,nd->n", one, other).astype(np.float32)
    pairs = (np.array([pair]) for pair in range(len(queries)))
    return np.array([_list_scores(take(queries, pair), take(vectors, pair))[0, 0] for pair in pairs], np.float32)


def prepare(vectors: Vectors, metric: Metric) -> Vectors:
    """Queries or vectors as `block_scores` expects them. Queries of unit vectors are normalized too."""
    if not isinstance(vectors, np.ndarray):
        return vectors
    return metric.prepare(vectors)


def prepare_queries(queries: Vectors, metric: Metric) -> Vectors:
    """Queries as `block_scores` expects them: of length 1 for the cosine, so that scores are cosines."""
    if isinstance(queries, np.ndarray) and metric.name == "cosine":
        return to_unit_length(queries)
    return queries


def _max_norm(vectors: NDArray[np.float32]) -> np.float32:
    return np.sqrt(np.einsum("nd,nd->n", vectors, vectors).max(initial=0))


def _list_scores(queries: Vectors, vectors: Vectors) -> NDArray[np.float64]:
    """(Q, N) scores of sparse vectors, or of late interaction."""
    if isinstance(queries, SparseVectors):
        assert isinstance(vectors, SparseVectors)
        return _sparse_scores(queries, vectors)
    assert isinstance(queries, Ragged)
    assert isinstance(vectors, Ragged)
    exact = Ragged(vectors.values.astype(np.float64), vectors.offsets)
    return np.stack([_late_scores(queries[query], exact) for query in range(len(queries))])


def _sparse_scores(queries: SparseVectors, vectors: SparseVectors) -> NDArray[np.float64]:
    """(Q, N) dot products: each query is spread over the vocabulary, then summed at the ids of each vector."""
    width = max(queries.width, vectors.width, 1)
    starts, lengths = vectors.ids.offsets[:-1], np.diff(vectors.ids.offsets)
    filled = np.flatnonzero(lengths)
    scores = np.zeros((len(queries), len(vectors)))
    for query in range(len(queries)):
        dense = np.zeros(width)
        dense[queries.ids[query]] = queries.weights[query]
        products = dense[vectors.ids.values] * vectors.weights.values
        if len(filled):
            scores[query, filled] = np.add.reduceat(products, starts[filled])
    return scores


def _late_scores(query: NDArray, vectors: Ragged) -> NDArray[np.float64]:
    """(N,) MaxSim: for each token of the query the best token of a text, summed; 0 for a text without tokens.

    `vectors` are float64.
    """
    products = query.astype(np.float64) @ vectors.values.T
    lengths = np.diff(vectors.offsets)
    filled = np.flatnonzero(lengths)
    scores = np.zeros(len(vectors))
    if len(filled):
        scores[filled] = np.maximum.reduceat(products, vectors.offsets[:-1][filled], axis=1).sum(axis=0)
    return scores
