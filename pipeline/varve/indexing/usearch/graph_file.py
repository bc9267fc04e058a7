"""One graph in USearch's file format: built from blocks of vectors, and viewed from the disk.

Knows nothing of outputs and folders. Invariant: the bytes are a function of the vectors and the settings, because one
thread adds them in the order of their positions.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varve.errors import RunError, one_line
from varve.indexing.metric import Metric
from varve.indexing.usearch.usearch_kind import CONNECTIVITY, EXPANSION_ADD, metric_name


def build_graph(
    path: Path, kind: str, metric: Metric, width: int, blocks: Iterable[tuple[int, NDArray[np.float32]]]
) -> None:
    """Write a graph. The whole graph is in memory while it is built.

    Args:
        path: of the file.
        kind: f32, f16 or i8.
        metric: how vectors are compared.
        width: dimensions of a vector.
        blocks: (position of the first vector, (N, width) vectors), in the order of the positions, which are the keys.

    Raises:
        RunError: a vector has a value that is not finite.
    """
    from usearch.index import Index  # noqa: PLC0415 (an extra, and slow to import)

    graph = Index(
        ndim=width, metric=metric_name(metric), dtype=kind, connectivity=CONNECTIVITY, expansion_add=EXPANSION_ADD
    )
    for first, vectors in blocks:
        if not np.isfinite(vectors).all():
            position = first + int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
            msg = f"the vector of position {position} has values that are not finite: it has no neighbours"
            raise RunError(msg)
        graph.add(np.arange(first, first + len(vectors), dtype=np.uint64), np.ascontiguousarray(vectors), threads=1)
    graph.save(str(path))


def view_graph(path: Path) -> Any:
    """A `usearch.index.Index` that is mapped from a file and cannot be changed.

    Raises:
        RunError: the file is damaged.
    """
    from usearch.index import Index  # noqa: PLC0415

    try:
        graph = Index.restore(str(path), view=True)
    except (RuntimeError, ValueError, OSError) as e:
        msg = f"{path} is damaged: {one_line(e)}"
        raise RunError(msg) from e
    if graph is None:
        msg = f"{path} is damaged: it is not a USearch index"
        raise RunError(msg)
    return graph
