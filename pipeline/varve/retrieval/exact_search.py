"""The nearest vectors of a finished output, found in its parts without an index.

Knows nothing of models and texts. Invariants: the result is that of a full sort by score and position, whatever the
parts, blocks and threads are; of the parts only the feature itself is read, a block at a time, so memory is that of a
few blocks.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from varve.engine.parallel import Spread
from varve.indexing.neighbours import Neighbours, nearest
from varve.indexing.rows import Vectors, take
from varve.indexing.source import IndexSource

_QUERIES_AT_ONCE = 1024  # their scores with a block are in memory at once


def available_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_cores(work: Callable[[Any], Any], items: Sequence[Any], num_threads: int | None = None) -> Iterator[Any]:
    """Apply a function to items in threads of this process, by default one per core that it may use."""
    with ThreadPoolExecutor(num_threads or available_cores()) as threads:
        yield from threads.map(work, items)


def search_exact(source: IndexSource, queries: Vectors, k: int, spread: Spread = in_cores) -> Neighbours:
    """The k nearest vectors of each query.

    Args:
        source: the feature.
        queries: Q, as the encoder returns them.
        k: at least 1.
        spread: searches the parts in parallel: in threads, or on a cluster.

    Returns:
        (Q, k) positions and scores; fewer columns if the output has fewer vectors.

    Raises:
        RunError: a part is missing or damaged.
    """
    k = min(k, source.num_vectors)
    filled = np.flatnonzero(np.diff(source.starts)).tolist()
    found = Neighbours.none(len(queries), k)
    for of_part in spread(partial(_search_part, source, queries, k), filled):
        found = Neighbours.merge([found, of_part])
    return found


def _search_part(source: IndexSource, queries: Vectors, k: int, part: int) -> Neighbours:
    groups = [take(queries, slice(at, at + _QUERIES_AT_ONCE)) for at in range(0, len(queries), _QUERIES_AT_ONCE)]
    found = [Neighbours.none(len(group), k) for group in groups]
    for first, block in source.blocks(part):
        for number, group in enumerate(groups):
            floor = found[number].scores[:, -1]
            of_block = nearest(group, block, first, k, source.metric, floor=floor)
            found[number] = Neighbours.merge([found[number], of_block])
    return _stack(found)


def _stack(groups: Sequence[Neighbours]) -> Neighbours:
    positions = np.concatenate([group.positions for group in groups])
    return Neighbours(positions, np.concatenate([group.scores for group in groups]))
