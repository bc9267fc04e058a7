"""Token pooling of late-interaction vectors: similar tokens of a text become one vector. numpy and scipy.

Knows the declared settings; no models and no tables. Invariant: a text's vectors depend on this text alone.
Source: Clavié et al. 2024, Reducing the Footprint of Multi-Vector Retrieval with Minimal Performance Impact via Token
Pooling; computed as `HierarchicalTokenPooling` of sentence-transformers 6.2 with scipy.
"""

import numpy as np
from numpy.typing import NDArray

from varve.encoder.checkpoint.head import TokenPooling
from varve.encoder.postprocessing import normalize
from varve.encoder.ragged import Ragged

Floats = NDArray[np.float32]


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
