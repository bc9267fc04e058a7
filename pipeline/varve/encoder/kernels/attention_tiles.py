"""Tiles of attention on a GPU: consecutive queries of one window, which attend to the keys of that window.

Pure numpy; triton_kernels.py computes the tiles. Invariants: each token is a query of exactly one tile; how a window is
divided depends only on its length.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

# Queries per tile. A window takes the smallest tile that holds it, or else the largest: larger tiles leave rows empty
# at the end of a window, smaller ones load the window's keys more often.
_TILE_SIZES = (16, 32, 64)


@dataclass(frozen=True, slots=True)
class TileGroup:
    """Consecutive tiles that are computed in one kernel launch."""

    first: int
    count: int
    queries: int  # per tile
    longest: int  # tokens of their longest window


@dataclass(frozen=True, slots=True, eq=False)
class Tiles:
    """The tiles of a packed row. A class, because torch.compile treats its instances as opaque."""

    table: Tensor  # (N, 3) int32 on the device: first query, start of its window, end of its window
    groups: Sequence[TileGroup]


def make_tiles(lengths: NDArray[np.int64]) -> tuple[NDArray[np.int32], list[TileGroup]]:
    """Divide the windows of a packed row into tiles.

    Args:
        lengths: (W,) tokens of each window, ascending.

    Returns:
        (N, 3) int32 table as in `Tiles`, and its groups.
    """
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    edges = [0, *(int(edge) for edge in np.searchsorted(lengths, _TILE_SIZES, side="right")), len(lengths)]
    tables, groups, first = [], [], 0
    for start, stop, queries in zip(edges[:-1], edges[1:], (*_TILE_SIZES, _TILE_SIZES[-1]), strict=True):
        if start < stop:
            tables.append(_make_table(starts[start : stop + 1], queries))
            groups.append(TileGroup(first, len(tables[-1]), queries, int(lengths[stop - 1])))
            first += groups[-1].count
    return np.concatenate(tables), groups


def _make_table(starts: NDArray[np.int64], queries: int) -> NDArray[np.int32]:
    counts = -(-np.diff(starts) // queries)
    window = np.repeat(np.arange(len(counts)), counts)
    index = np.arange(len(window)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([starts[window] + index * queries, starts[window], starts[window + 1]], axis=1).astype(np.int32)
