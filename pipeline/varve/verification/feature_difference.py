"""Compares the stored features of one row with those of the reference model.

Knows the form of a column; no models and no sources. Differences are relative to the length of the reference's vector
(at least 1), so they compare with the rounding error of a computation.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.encoder.feature_plan import Column
from varve.output.vectors import read_scales, read_sparse, read_vectors

Floats = NDArray[np.float32]

# Vectors of clusters that may differ: two clusters that are almost equally near to a token may both change with the
# last bits of its vector.
_CLUSTERS_OF_A_TIE = 2


def difference(
    column: Column, row: pa.Table, want: Floats, *, cluster_tolerance: float, max_active_dims: int | None
) -> tuple[float, float]:
    """(relative, absolute) difference of the worst vector of a row.

    Binary vectors: the share of different signs, twice. Clusters: the share of vectors without a counterpart in the
    reference, twice, see `_unmatched`.

    Args:
        column: definition of the feature.
        row: one row of the output.
        want: the reference's vectors, (N, width); of a sparse column with all weights.
        cluster_tolerance: relative distance up to which the vectors of two clusters are equal.
        max_active_dims: of a sparse column.
    """
    if column.form == "sparse":
        return _of_sparse(column, row, want, max_active_dims)
    got = read_vectors(row, column)
    if column.form == "clusters":
        share = _unmatched(row, column, got, want, cluster_tolerance)
        return share, share
    if got.shape != want.shape:
        return float("inf"), float("inf")
    if column.dtype == "binary":
        share = float(np.mean((got > 0) != (want > 0))) if got.size else 0.0
        return share, share
    return _of_vectors(got, want, _half_step(row, column))


def _of_vectors(got: Floats, want: Floats, half_step: Floats | float) -> tuple[float, float]:
    excess = np.maximum(np.abs(got - want) - half_step, 0)
    relative = np.linalg.norm(excess, axis=1) / np.maximum(np.linalg.norm(want, axis=1), 1.0)
    return float(relative.max(initial=0.0)), float(np.abs(got - want).max(initial=0.0))


def _half_step(row: pa.Table, column: Column) -> Floats | float:
    """The largest rounding error of an int8 value, half a scale: (N, 1) for N vectors; 0 for other dtypes."""
    return 0.0 if column.scale_name is None else read_scales(row, column) * np.float32(0.5)


def _of_sparse(column: Column, row: pa.Table, want: Floats, limit: int | None) -> tuple[float, float]:
    """Compare all weights of the vocabulary: an id with a weight near 0 may be stored or not.

    If only the largest weights are kept, two of almost equal size may change places. A weight that is not stored may
    therefore be as large as the smallest stored one.
    """
    ids, weights = (each.values for each in read_sparse(row, column))
    is_known = not len(ids) or 0 <= ids.min() <= ids.max() < column.width
    if not is_known or len(ids) > (limit or column.width):
        return float("inf"), float("inf")
    got = np.zeros_like(want)
    got[0, ids] = weights
    if len(ids) == limit:
        too_small = np.maximum(np.abs(want) - np.abs(weights).min(), 0)
        want = np.where(got == 0, np.sign(want) * too_small, want)
    return _of_vectors(got, want, 0.0)


def _unmatched(row: pa.Table, column: Column, got: Floats, want: Floats, tolerance: float) -> float:
    """The share of vectors, stored or of the reference, without a counterpart; `_CLUSTERS_OF_A_TIE` are allowed.

    The order of clusters depends on their tree, so each stored vector is compared with the nearest one. Signs alone
    have few different distances, so ties decide their clusters: of binary vectors only the number is compared.
    """
    unmatched = abs(len(got) - len(want))
    if len(got) and len(want) and column.dtype != "binary":
        stored, expected = got.astype(np.float64), want.astype(np.float64)  # float32 would lose small distances
        squares = (stored**2).sum(1)[:, None] + (expected**2).sum(1) - 2 * stored @ expected.T
        distances = np.sqrt(np.maximum(squares, 0)) / np.maximum(np.linalg.norm(expected, axis=1), 1.0)
        # int8 values are rounded before and after they are pooled, each time by half a scale at most.
        rounding = 2 * np.asarray(_half_step(row, column)).reshape(-1) * np.sqrt(column.width)
        unmatched += int((distances.min(axis=1) > tolerance + rounding).sum())
    return max(0, unmatched - _CLUSTERS_OF_A_TIE) / max(1, len(want))
