"""The tiles in which a GPU attends: neighbouring queries of one window, which see the keys of that window alone.

Pure numpy; what a tile computes is in triton_code.py. Invariants: each token is a query of one tile; how a window is
cut depends on its own length and on nothing beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

# Windows up to so many tokens, and the queries of their tiles. Larger tiles leave rows empty at a window's end, smaller
# ones load its keys more often.
_QUERIES = ((16, 16), (32, 32), (64, 64))
_MOST_QUERIES = 64


@dataclass(frozen=True, slots=True)
class Part:
    """Tiles that are computed alike."""

    first: int
    count: int
    queries: int
    longest: int  # tokens of their longest window


@dataclass(frozen=True, slots=True, eq=False)
class Tiles:
    """The tiles of a packed row. An object of its own, which torch.compile does not look into."""

    table: Tensor  # (N, 3) int32 on the device: first query, where its window starts, where it ends
    parts: Sequence[Part]


def cut(lengths: NDArray[np.int64]) -> tuple[NDArray[np.int32], list[Part]]:
    """Cut windows that lie end to end into tiles.

    Args:
        lengths: (W,) tokens of each, ascending.

    Returns:
        (N, 3) int32 as in `Tiles`, and its parts.
    """
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    edges = [0, *(int(np.searchsorted(lengths, most, side="right")) for most, _ in _QUERIES), len(lengths)]
    tables, parts, first = [], [], 0
    sizes = (*(queries for _, queries in _QUERIES), _MOST_QUERIES)
    for start, stop, queries in zip(edges[:-1], edges[1:], sizes, strict=True):
        if start < stop:
            tables.append(_table(starts[start : stop + 1], queries))
            parts.append(Part(first, len(tables[-1]), queries, int(lengths[stop - 1])))
            first += parts[-1].count
    return np.concatenate(tables), parts


def _table(starts: NDArray[np.int64], queries: int) -> NDArray[np.int32]:
    counts = -(-np.diff(starts) // queries)
    window = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(window)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([starts[window] + place * queries, starts[window], starts[window + 1]], axis=1).astype(np.int32)
