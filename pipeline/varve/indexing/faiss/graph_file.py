"""Builds one graph (HNSW) of consecutive positions.

Knows nothing of the folder of the index. Invariant: the bytes are a function of the trained index and the vectors: one
thread, and all vectors are added at once, so the borders of the parts have no influence.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varve.indexing.faiss.faiss_library import contiguous, one_thread
from varve.indexing.source import IndexSource


def write_graph(index: Any, source: IndexSource, first: int, stop: int, path: Path) -> None:
    """Write the index of the positions [first, stop); the id of a vector is its position - first.

    The float32 vectors are mapped from a file next to `path`: memory holds the codes and the links.

    Args:
        index: trained, without vectors; it is changed.
        source: of the vectors.
        first: position of the first vector.
        stop: position after the last one.
        path: of the file to write.
    """
    vectors_path = path.with_name(f"{path.name}.vectors")
    with vectors_path.open("wb") as file:
        for vectors in _prepared(source, first, stop):
            file.write(vectors.data)
    vectors = np.memmap(vectors_path, np.float32, "r", shape=(stop - first, source.width))
    with one_thread() as faiss:
        index.add(vectors)
        faiss.write_index(index, str(path))
    vectors_path.unlink()


def _prepared(source: IndexSource, first: int, stop: int) -> Iterator[NDArray[np.float32]]:
    """The vectors of some positions, part after part, as the metric compares them."""
    parts = source.part_of(np.array([first, stop - 1]))
    for part in range(int(parts[0]), int(parts[1]) + 1):
        for at, block in source.blocks(part):
            assert isinstance(block, np.ndarray)
            yield contiguous(source.metric.prepare(block[max(first - at, 0) : max(stop - at, 0)]))
