"""Trains an index without vectors: centroids, ranges of dimensions, codebooks.

Knows nothing of files. Invariant: the result is a function of the kind and the source: fixed seeds, one thread.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from varve.indexing.faiss.faiss_kind import FaissKind
from varve.indexing.faiss.faiss_library import contiguous, metric_type, one_thread
from varve.indexing.source import IndexSource

_SEED = 1234
_VECTORS_PER_LIST = 32
_MIN_VECTORS = 65_536
_MAX_SAMPLE_BYTES = 2**32
_CENTROID_EF_SEARCH = 64  # finds the nearest of 12,000 centroids for 99.97 % of the vectors


def train_index(kind: FaissKind, source: IndexSource) -> bytes:
    """The trained index, serialized, from a sample of the source's vectors."""
    with one_thread() as faiss:
        index = _create(faiss, kind, source)
        # The C++ object holds a pointer only, so this frame holds the graph.
        graph = _search_centroids_by_graph(faiss, index, kind) if kind.centroid_links else None
        if not index.is_trained:
            index.train(contiguous(source.metric.prepare(_sample(source, sample_size(kind, source)))))
        if graph is not None:
            index.clustering_index = None
        return faiss.serialize_index(index).tobytes()


def sample_size(kind: FaissKind, source: IndexSource) -> int:
    """Number of vectors to train with."""
    wanted = max(_VECTORS_PER_LIST * kind.num_lists, _MIN_VECTORS)
    return min(source.num_vectors, wanted, _MAX_SAMPLE_BYTES // (4 * source.width))


def _sample(source: IndexSource, num_vectors: int) -> NDArray[np.float32]:
    """(num_vectors, width) in one array, which may be large: each block is copied to its place."""
    positions = source.sample_positions(num_vectors, seed=_SEED, max_parts=None)  # with fewer, FAISS does not train
    sample = np.empty((num_vectors, source.width), np.float32)
    filled = 0
    for part in np.unique(source.part_of(positions)).tolist():
        for first, block in source.blocks(part):
            assert isinstance(block, np.ndarray)
            start, stop = np.searchsorted(positions, [first, first + len(block)])
            sample[start:stop] = block[positions[start:stop] - first]
            filled += int(stop - start)
    return sample[:filled]


def _create(faiss: Any, kind: FaissKind, source: IndexSource) -> Any:
    # "np": without polysemous training, which takes minutes and serves a search that is not used.
    name = f"{kind.name}np" if kind.codec.startswith("PQ") else kind.name
    index = faiss.index_factory(source.width, name, metric_type(source.metric))
    if kind.family == "lists":
        for clustering in [index.cp, *([index.pq.cp] if kind.codec.startswith("PQ") else [])]:
            clustering.seed = _SEED
            clustering.min_points_per_centroid = 1
        index.cp.spherical = index.metric_type == faiss.METRIC_INNER_PRODUCT
    return index


def _search_centroids_by_graph(faiss: Any, index: Any, kind: FaissKind) -> Any:
    """Also while training, where all vectors are compared with the centroids in each iteration; returns the graph."""
    graph = faiss.IndexHNSWFlat(index.d, kind.centroid_links, index.metric_type)
    for each in (graph, faiss.downcast_index(index.quantizer)):
        each.hnsw.efSearch = _CENTROID_EF_SEARCH
    index.quantizer_trains_alone = 2
    index.clustering_index = graph
    return graph
