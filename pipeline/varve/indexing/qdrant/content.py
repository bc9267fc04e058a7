"""Compares what a collection holds with the source, and with itself at a later time.

Invariant: the compared positions are a function of the number of vectors.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from varve.errors import RunError
from varve.indexing.metric import Metric, to_unit_length
from varve.indexing.qdrant.collection import Collection
from varve.indexing.qdrant.points import arrays_of
from varve.indexing.qdrant.qdrant_searcher import QdrantSearcher
from varve.indexing.source import IndexSource

_CHECKED_POINTS = 100
_SHOWN_POSITIONS = 5
# Of lengths that the server computes in float32 itself.
_UNIT_TOLERANCE = 1e-6


def compare(searcher: QdrantSearcher, source: IndexSource) -> None:
    """Compare the vectors of some points with the source, bit by bit unless the server normalizes them.

    Raises:
        RunError: a point is missing, or its vector differs.
    """
    positions = _sample(source.num_vectors)
    stored, part_of = searcher.arrays(positions), source.part_of(positions)
    for part in np.unique(part_of):
        rows = source.read(int(part), ())
        expected = arrays_of(rows.vectors)
        for at in np.flatnonzero(part_of == part):
            if not _is_same(stored[at], expected[int(positions[at]) - rows.first], source.metric):
                msg = (
                    f"{searcher.collection.url}: {searcher.collection.name} holds another vector at position "
                    f"{positions[at]} than the source. Delete the collection and build the index again"
                )
                raise RunError(msg)


def _sample(num_vectors: int) -> NDArray[np.int64]:
    """Ascending positions that are compared; a function of the number of vectors."""
    random = np.random.default_rng(num_vectors)
    return np.unique(random.integers(0, num_vectors, _CHECKED_POINTS)).astype(np.int64)


def _is_same(stored: NDArray, expected: NDArray, metric: Metric) -> bool:
    if metric.normalizes:
        return bool(np.allclose(stored, to_unit_length(expected[None])[0], atol=_UNIT_TOLERANCE))
    return stored.shape == expected.shape and bool(np.array_equal(stored, expected))


def digest_of(searcher: QdrantSearcher, num_vectors: int) -> str:
    """SHA-256 of the vectors of some positions."""
    digest = hashlib.sha256()
    for array in searcher.arrays(_sample(num_vectors)):
        digest.update(array.tobytes())
    return digest.hexdigest()


def missing_positions(collection: Collection, num_vectors: int) -> list[int]:
    """The first few positions without a point."""
    missing: list[int] = []
    ranges = [(0, num_vectors)]
    while ranges and len(missing) < _SHOWN_POSITIONS:
        start, stop = ranges.pop()
        if collection.count(start, stop) == stop - start:
            continue
        middle = (start + stop) // 2
        if stop - start == 1:
            missing.append(start)
        else:
            ranges += [(middle, stop), (start, middle)]
    return missing
