"""The vectors that a search computes distances with again, next to an index whose codes are too short.

They are one NumPy array on disk, `vectors.npy`, mapped into memory: a search reads the rows of its candidates. Reading
them from the parts of the output instead would decode a whole part per candidate. float16 has half the size, and is
precise enough for vectors of length 1; others may exceed its range, and are float32 unless the output has float16.
"""

from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError

import numpy as np
from numpy.typing import NDArray

from varve.errors import RunError, first_line
from varve.indexing.faiss.merged_file import append_files
from varve.indexing.metric import Metric
from varve.indexing.neighbours import Neighbours
from varve.indexing.source import IndexSource


def stored_dtype(source: IndexSource) -> np.dtype:
    """float16 or float32."""
    half = source.metric.name == "cosine" or source.column.dtype == "float16"
    return np.dtype("<f2" if half else "<f4")


def write_vectors(parts: Sequence[Path], shape: tuple[int, int], dtype: np.dtype, path: Path) -> None:
    """Write the array from files that hold the rows of the parts."""
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        append_files(file, parts)


def map_vectors(path: Path) -> NDArray[np.floating]:
    """The (N, width) array of a file.

    Raises:
        RunError: it cannot be read.
    """
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OSError, OverflowError, TokenError) as e:  # NumPy reads the header as Python does
        msg = f"{path} is not an array that NumPy can read: {first_line(e)}. Build the index again"
        raise RunError(msg) from e


def rescore(
    queries: NDArray[np.float32], found: Neighbours, vectors: NDArray[np.floating], k: int, metric: Metric
) -> Neighbours:
    """The k nearest of the candidates of each query, by the stored vectors.

    Args:
        queries: (Q, width), prepared.
        found: candidates.
        vectors: (N, width), as stored.
        k: at most the number of candidates.
        metric: how vectors are compared.
    """
    scores = np.full(found.positions.shape, -np.inf, np.float32)
    for query, positions, row in zip(queries, found.positions, scores, strict=True):
        filled = positions >= 0
        candidates = vectors[positions[filled]].astype(np.float32)
        if metric.name == "euclidean":
            row[filled] = -np.square(candidates - query).sum(axis=1)
        else:
            row[filled] = candidates @ query
    return Neighbours(found.positions, scores).best(k)
