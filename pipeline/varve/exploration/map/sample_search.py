"""The nearest rows of the sample: exact cosine similarity, by faiss if it is installed, else by numpy.

Knows nothing of outputs. Invariants: vectors have unit length; memory is that of one block of similarities.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK_PAIRS = 2**24  # similarities that numpy holds at once: 64 MB


@dataclass(frozen=True, slots=True, eq=False)
class SampleSearch:
    """Searches in the sample.

    Attributes:
        vectors: (S, width) float32 of unit length.
        index: of faiss; None: numpy.
    """

    vectors: NDArray[np.float32]
    index: Any = None

    @classmethod
    def of(cls, vectors: NDArray[np.float32], *, use_faiss: bool | None = None) -> "SampleSearch":
        """Prepare a search in S vectors of unit length; `use_faiss`: None if it is installed."""
        if not (find_spec("faiss") if use_faiss is None else use_faiss):
            return cls(vectors)
        import faiss  # noqa: PLC0415 (optional)

        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        return cls(vectors, index)

    def nearest(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(Q, k) rows of the sample, the nearest first, and their cosine similarities; k is at most S."""
        if self.index is not None:
            scores, rows = self.index.search(np.ascontiguousarray(queries), k)
            return rows, scores
        step = max(1, _BLOCK_PAIRS // len(self.vectors))
        found = [self._nearest(queries[at : at + step], k) for at in range(0, len(queries), step)]
        return np.concatenate([rows for rows, _ in found]), np.concatenate([scores for _, scores in found])

    def _nearest(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        scores = queries @ self.vectors.T
        rows = np.argpartition(scores, scores.shape[1] - k, axis=1)[:, -k:]
        best = np.take_along_axis(scores, rows, axis=1)
        order = np.lexsort((rows, -best), axis=1)
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(best, order, axis=1)


def unit_length(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same directions with length 1; a zero vector stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
