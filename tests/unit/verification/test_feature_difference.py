"""The difference of a row from the reference: what is allowed, and what is found."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from tests.outputs import column
from varve.verification.feature_difference import difference

RNG = np.random.default_rng(0)
SPARSE = column("e", 100, pool="splade", form="sparse")
UNITS = RNG.normal(size=(20, 16)).astype(np.float32)
UNITS /= np.linalg.norm(UNITS, axis=1, keepdims=True)


def sparse_row(weights: dict[int, float]) -> pa.Table:
    ids, values = pa.array([list(weights)], pa.list_(pa.int32())), [list(weights.values())]
    return pa.table({"e_ids": ids, "e_weights": pa.array(values, pa.list_(pa.float32()))})


def dense(weights: dict[int, float]) -> np.ndarray:
    vector = np.zeros((1, 100), np.float32)
    vector[0, list(weights)] = list(weights.values())
    return vector


def sparse_difference(stored: dict[int, float], expected: dict[int, float], limit: int | None = None) -> float:
    found = difference(SPARSE, sparse_row(stored), dense(expected), cluster_tolerance=0.0, max_active_dims=limit)
    return found[0]


EXPECTED = {3: 2.0, 7: 1.0, 90: 1e-6}


def test_weight_near_zero_may_be_stored_or_not():
    assert sparse_difference({3: 2.0, 7: 1.0}, EXPECTED) < 1e-5
    assert sparse_difference({3: 2.0, 7: 1.0, 90: 2e-6, 91: 1e-6}, EXPECTED) < 1e-5
    assert sparse_difference({}, {}) == 0


@pytest.mark.parametrize(
    "stored", [{3: 2.0}, {3: 2.0, 8: 1.0}, {3: 2.0, 7: 1.1}, {3: 2.0, 7: 1.0, 50: 0.1}, {-1: 2.0, 7: 1.0}, {100: 1.0}]
)
def test_wrong_id_or_weight_is_found(stored):
    assert sparse_difference(stored, EXPECTED) > 1e-2


def test_of_almost_equal_weights_either_one_may_be_left_out():
    expected = {1: 3.0, 2: 1.000001, 3: 1.0, 4: 0.5}
    assert sparse_difference({1: 3.0, 2: 1.000001}, expected, limit=2) < 1e-6
    assert sparse_difference({1: 3.0, 3: 1.0}, expected, limit=2) < 1e-6
    assert sparse_difference({1: 3.0, 4: 0.5}, expected, limit=2) > 0.1
    assert sparse_difference({1: 3.0}, expected, limit=2) > 0.1
    assert sparse_difference(expected, expected, limit=2) == float("inf")


def list_row(vectors: np.ndarray, dtype: str = "float32", scales: Sequence[float] = ()) -> pa.Table:
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    lists = pa.ListArray.from_arrays(pa.array([0, len(vectors)], pa.int32()), flat)
    return pa.table({"e": lists, **({"e_scale": pa.array([list(scales)], pa.list_(pa.float32()))} if scales else {})})


def list_difference(form: str, stored: np.ndarray, expected: np.ndarray) -> float:
    definition = column("e", stored.shape[1], pool="declared", form=form)
    found = difference(definition, list_row(stored), expected, cluster_tolerance=2e-5, max_active_dims=None)
    return found[0]


def test_late_vectors_differ_by_number_order_and_values():
    assert list_difference("late", UNITS, UNITS) == 0
    assert list_difference("late", UNITS[:0], UNITS[:0]) == 0
    assert list_difference("late", UNITS[:-1], UNITS) == float("inf")
    assert list_difference("late", UNITS[::-1], UNITS) > 0.1
    assert list_difference("late", np.concatenate([UNITS[:-1], 1.01 * UNITS[-1:]]), UNITS) == pytest.approx(
        0.01, rel=0.1
    )


def test_clusters_may_change_order_and_two_of_them_may_change_in_a_tie():
    changed = np.concatenate([-UNITS[:2], UNITS[2:]])
    assert list_difference("clusters", UNITS[::-1] * (1 + 1e-6), UNITS) == 0
    assert list_difference("clusters", changed, UNITS) == 0
    assert list_difference("clusters", UNITS[:-1], UNITS) == 0
    assert list_difference("clusters", UNITS[:0], UNITS[:0]) == 0


def test_other_clusters_are_found():
    assert list_difference("clusters", -UNITS, UNITS) == 18 / 20
    assert list_difference("clusters", UNITS[:10], UNITS) == 8 / 20
    assert list_difference("clusters", UNITS * 1.001, UNITS) == 18 / 20
    assert list_difference("clusters", UNITS[:0], UNITS) == 18 / 20


def test_rounding_of_int8_clusters_is_allowed():
    scales = np.abs(UNITS).max(axis=1) / 127
    stored = np.rint(UNITS / scales[:, None]).astype(np.int8)
    definition = column("e", 16, pool="declared", form="clusters", dtype="int8")
    for factor, expected in ((1.0, 0), (1.5, 18 / 20)):
        row = list_row(stored, "int8", (scales * factor).tolist())
        found = difference(definition, row, UNITS, cluster_tolerance=2e-5, max_active_dims=None)
        assert found[0] == expected
