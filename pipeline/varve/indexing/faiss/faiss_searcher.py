"""Answers queries with the files of an index, mapped into memory, on one thread.

Knows nothing of how they were built. Invariant: a search changes no index, so several may run at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.errors import RunError, first_line
from varve.indexing.faiss.faiss_kind import FaissKind
from varve.indexing.faiss.faiss_library import contiguous, load_faiss, map_index, one_thread
from varve.indexing.faiss.stored_vectors import map_vectors, rescore
from varve.indexing.index_folder import IndexFolder
from varve.indexing.metric import Metric
from varve.indexing.neighbours import Neighbours
from varve.indexing.rows import Vectors
from varve.indexing.scores import prepare_queries


@dataclass(frozen=True, slots=True)
class FaissSearcher:
    """The `Searcher` of an index.

    Attributes:
        kind: of the index.
        metric: of its vectors.
        folder: that holds the rows of the positions.
        shards: (position of the first vector, index) of each file.
        vectors: (N, width), if the kind computes distances again.
    """

    kind: FaissKind
    metric: Metric
    folder: IndexFolder
    shards: tuple[tuple[int, Any], ...]
    vectors: NDArray[np.floating] | None

    @classmethod
    def open(
        cls,
        kind: FaissKind,
        metric: Metric,
        folder: IndexFolder,
        files: Sequence[tuple[int, Path]],
        vectors: Path | None,
    ) -> Self:
        """Map the files of an index.

        Args:
            kind: of the index.
            metric: of its vectors.
            folder: that holds the rows of the positions.
            files: (position of the first vector, file of an index).
            vectors: file of the stored vectors.

        Raises:
            RunError: a file cannot be read.
        """
        shards = tuple((first, _open_index(kind, path)) for first, path in files)
        return cls(kind, metric, folder, shards, None if vectors is None else map_vectors(vectors))

    def search(self, queries: Vectors, k: int, setting: Mapping[str, int]) -> Neighbours:
        """The k nearest vectors of each query; see `Searcher`."""
        prepared = prepare_queries(queries, self.metric)
        assert isinstance(prepared, np.ndarray)
        prepared = contiguous(prepared)
        wanted = k * setting.get("rescore", 1)
        with one_thread():
            found = [self._search_shard(index, first, prepared, wanted, setting) for first, index in self.shards]
        if self.vectors is None:
            return Neighbours.merge([Neighbours.none(len(prepared), k), *found])
        candidates = rescore(prepared, found[0], self.vectors, k, self.metric)
        return Neighbours.merge([Neighbours.none(len(prepared), k), candidates])

    def _search_shard(
        self, index: Any, first: int, queries: NDArray[np.float32], k: int, setting: Mapping[str, int]
    ) -> Neighbours:
        most = max(1, index.ntotal)  # FAISS allocates what a setting asks for
        parameters = search_parameters(self.kind, {name: min(max(1, value), most) for name, value in setting.items()})
        try:
            scores, ids = index.search(queries, min(max(1, k), most), params=parameters)
        except RuntimeError as e:  # the file or the setting is not of this kind
            msg = f"{self.folder.storage.uri} cannot be searched: {first_line(e)}. Build the index again"
            raise RunError(msg) from e
        missing = ids < 0
        scores = np.where(missing, -np.inf, -scores if self.metric.name == "euclidean" else scores)
        return Neighbours(np.where(missing, ids, ids + first), scores.astype(np.float32))

    def rows(self, positions: NDArray[np.int64]) -> pa.Table:
        """The columns of `IndexRows.ids` of N positions, in their order."""
        return self.folder.rows(positions)

    def dense_at(self, positions: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """(N, width) float32 vectors of N positions; None if the index holds codes, or vectors of another length."""
        if not self.kind.is_exact or self.metric.normalizes:
            return None
        found = np.zeros((len(positions), self.shards[0][1].d), np.float32)
        firsts = np.array([first for first, _ in self.shards])
        shard_of = np.searchsorted(firsts, positions, side="right") - 1
        for number in np.unique(shard_of):
            here = shard_of == number
            first, index = self.shards[number]
            found[here] = index.reconstruct_batch(positions[here] - first)
        return found


def _open_index(kind: FaissKind, path: Path) -> Any:
    faiss = load_faiss()
    index = map_index(path, lists=kind.family == "lists")
    if kind.family == "lists":  # otherwise each search starts 32 threads that read lists
        faiss.downcast_InvertedLists(index.invlists).prefetch_nthread = 0
    return index


def search_parameters(kind: FaissKind, setting: Mapping[str, int]) -> Any:
    """The object of FAISS for a setting of a kind; None for its defaults."""
    faiss = load_faiss()
    if "efSearch" in setting:
        return faiss.SearchParametersHNSW(efSearch=setting["efSearch"])
    if "nprobe" not in setting:
        return None
    nprobe = setting["nprobe"]
    if not kind.centroid_links:
        return faiss.SearchParametersIVF(nprobe=nprobe)
    of_centroids = faiss.SearchParametersHNSW(efSearch=2 * nprobe)
    return faiss.SearchParametersIVF(nprobe=nprobe, quantizer_params=of_centroids)
