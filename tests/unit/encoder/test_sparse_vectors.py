"""Sparse vectors as arrays: collected from packs, combined over windows, cut to the largest weights."""

from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from varve.encoder.sparse_vectors import SparsePieces, SparseVectors, reduce_entries

ENTRIES = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 9), st.sampled_from([0.0, 0.5, 1.0, -2.0, 3.0])), max_size=60
)


def dense(vectors: SparseVectors, width: int = 10) -> np.ndarray:
    """(N, width) array; every id of a vector is set once."""
    result = np.zeros((len(vectors.offsets) - 1, width), np.float32)
    rows = np.repeat(np.arange(len(result)), np.diff(vectors.offsets))
    assert len(np.unique(rows * width + vectors.ids)) == len(rows)
    result[rows, vectors.ids] = vectors.weights
    return result


def from_entries(entries, *, by_sum: bool) -> SparseVectors:
    rows, ids, weights = (np.array(list(values)) for values in zip(*entries, strict=True)) if entries else ([],) * 3
    arrays = np.asarray(rows, np.int64), np.asarray(ids, np.int64), np.asarray(weights, np.float32)
    return reduce_entries(*arrays, 5, by_sum=by_sum)


@given(ENTRIES, st.booleans())
def test_entries_in_any_order_give_ascending_ids_without_zeros(entries, by_sum):
    got = from_entries(entries, by_sum=by_sum)
    want = np.zeros((5, 10), np.float32)
    for row, index in {(row, index) for row, index, _ in entries}:
        weights = [weight for r, i, weight in entries if (r, i) == (row, index)]
        want[row, index] = sum(weights) if by_sum else max(weights)
    assert np.array_equal(dense(got), want)
    assert (got.weights != 0).all()
    assert all((np.diff(got.ids[a:b]) > 0).all() for a, b in zip(got.offsets, got.offsets[1:], strict=False))


@given(ENTRIES, st.booleans())
def test_rows_of_several_windows_equal_the_reduction_of_all_their_entries(entries, by_sum):
    windows, starts = from_entries(entries, by_sum=by_sum), np.array([0, 2, 2, 5])
    row_of = [0, 0, 2, 2, 2]
    want = np.zeros((3, 10), np.float32)
    for window, weights in enumerate(dense(windows)):
        row = want[row_of[window]]
        used = weights != 0
        fresh = used & (row == 0)
        row[used] = np.where(fresh, weights, row + weights if by_sum else np.maximum(row, weights))[used]
    assert np.array_equal(dense(windows.combine(starts, by_sum=by_sum)), want)


def test_nan_weight_is_kept():
    got = reduce_entries(np.zeros(2, np.int64), np.array([3, 3]), np.array([np.nan, 1], np.float32), 1)
    assert got.ids.tolist() == [3]
    assert np.isnan(got.weights).all()


def test_largest_weights_are_kept_in_the_order_of_their_ids():
    weights = np.array([1, -5, 2, 3, 9], np.float32)
    vectors = SparseVectors(np.array([0, 4, 5, 5]), np.array([1, 4, 6, 8, 2], np.int32), weights)
    kept = vectors.keep_largest(2)
    assert kept.offsets.tolist() == [0, 2, 3, 3]
    assert kept.ids.tolist() == [4, 8, 2]
    assert kept.weights.tolist() == [-5, 3, 9]


def rows(*vectors: dict[int, float]) -> SimpleNamespace:
    """Sparse rows of a pack."""
    flat = [(index, weight) for vector in vectors for index, weight in vector.items()]
    return SimpleNamespace(
        counts=torch.tensor([len(vector) for vector in vectors]),
        ids=torch.tensor([index for index, _ in flat], dtype=torch.int32),
        weights=torch.tensor([weight for _, weight in flat]),
    )


def test_pieces_of_packs_come_in_the_order_of_windows_and_the_last_piece_of_a_window_counts():
    pieces = SparsePieces(4)
    pieces.add(np.array([2, 0]), rows({1: 1.0, 5: 2.0}, {3: float("inf")}))
    pieces.add(np.array([3]), rows({}))
    pieces.add(np.array([0]), rows({3: 4.0, 7: 1.0}))  # encoded again, because it overflowed
    joined = pieces.join()
    assert joined.offsets.tolist() == [0, 2, 2, 4, 4]
    assert joined.ids.tolist() == [3, 7, 1, 5]
    assert joined.weights.tolist() == [4, 1, 1, 2]
    assert joined.take(np.array([2, 2, 0])).ids.tolist() == [1, 5, 1, 5, 3, 7]
