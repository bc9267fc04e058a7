"""Exact neighbours are those of a full sort, however the vectors are divided, also among equal ones."""

import time
from itertools import pairwise

import numpy as np
import pytest

from tests.index_sources import clustered
from varve.encoder.ragged import Ragged
from varve.indexing.metric import Metric
from varve.indexing.neighbours import NONE, Neighbours, nearest
from varve.indexing.rows import SparseVectors, Vectors, concatenate, take

METRICS = [Metric("dot"), Metric("cosine"), Metric("cosine", unit=True), Metric("euclidean")]


def exact_scores(queries, vectors, metric) -> np.ndarray:
    """(Q, N) float32 scores, computed in float64."""
    one, other = queries.astype(np.float64), vectors.astype(np.float64)
    if metric.name == "euclidean":
        return -np.square(one[:, None] - other[None]).sum(axis=2).astype(np.float32)
    if metric.name == "cosine":
        one = one / np.maximum(np.linalg.norm(one, axis=1, keepdims=True), 1e-30)
        if not metric.unit:
            other = other / np.maximum(np.linalg.norm(other, axis=1, keepdims=True), 1e-30)
    return (one @ other.T).astype(np.float32)


def full_sort(scores: np.ndarray, k: int, leave_out=None) -> tuple[np.ndarray, np.ndarray]:
    """(positions, scores) by score, then by position."""
    scores = scores.copy()
    if leave_out is not None:
        scores[np.arange(len(scores)), leave_out] = -np.inf
    order = np.lexsort((np.broadcast_to(np.arange(scores.shape[1]), scores.shape), -scores), axis=1)[:, :k]
    return order, np.take_along_axis(scores, order, axis=1)


def assert_same(found: Neighbours, scores: np.ndarray, k: int, leave_out=None) -> None:
    """Same scores; positions differ only where the last digit of a score decides."""
    expected, best = full_sort(scores, k, leave_out)
    assert np.allclose(found.scores, best, rtol=1e-5, atol=1e-6)
    same = found.positions == expected
    closest = np.abs(np.take_along_axis(scores, found.positions, axis=1) - best)
    assert (same | (closest <= 1e-6 * np.maximum(1, np.abs(best)))).all()
    assert same.mean() > 0.98


@pytest.mark.parametrize("metric", METRICS, ids=str)
@pytest.mark.parametrize("length", [1, 30])
def test_dense_neighbours_equal_a_full_sort(metric, length):
    vectors = clustered(5000, 24) * (1 if metric.unit else np.linspace(0.5, length, 5000)[:, None].astype(np.float32))
    queries = clustered(40, 24, seed=3)
    assert_same(nearest(queries, vectors, 0, 10, metric), exact_scores(queries, vectors, metric), 10)


@pytest.mark.parametrize("metric", METRICS, ids=str)
def test_integers_are_sorted_exactly_with_many_ties(metric):
    random = np.random.default_rng(0)
    vectors = random.integers(-1, 2, (6000, 6)).astype(np.float32)
    queries = random.integers(-1, 2, (30, 6)).astype(np.float32)
    if metric.name == "cosine":
        vectors, queries = np.sign(vectors) + 2, np.sign(queries) + 2
        vectors[:, :] = vectors[:1]  # one direction: every vector is a tie
    expected, scores = full_sort(exact_scores(queries, vectors, metric), 20)
    found = nearest(queries, vectors, 0, 20, metric)
    assert np.array_equal(found.positions, expected)
    assert np.allclose(found.scores, scores, rtol=1e-6)


@pytest.mark.parametrize("name", ["dot", "euclidean"])
def test_differences_below_the_precision_of_float32_sums_are_found(name):
    random = np.random.default_rng(0)
    vectors = np.repeat(random.integers(-4000, 4000, (1, 128)), 9000, axis=0).astype(np.float32)
    vectors += random.integers(-1, 2, vectors.shape) * (random.random(vectors.shape) < 0.05)
    queries = vectors[:20].copy()
    if name == "euclidean":
        vectors, queries = vectors + 30_000, queries + 30_000  # distances of a few units between long vectors
    metric = Metric(name)
    expected, scores = full_sort(exact_scores(queries, vectors, metric), 10)
    found = nearest(queries, vectors, 0, 10, metric)
    assert np.array_equal(found.scores, scores)
    assert np.array_equal(found.positions, expected)


@pytest.mark.parametrize("cuts", [[], [1], [2048], [2047, 2049], [10, 500, 501, 4000]])
def test_result_does_not_depend_on_the_division_or_the_order_of_merging(cuts):
    vectors, queries = clustered(5000, 24), clustered(20, 24, seed=3)
    vectors[1000:1100] = vectors[7]
    queries[3] = vectors[7]
    metric = Metric("cosine", unit=True)
    whole = nearest(queries, vectors, 100, 12, metric)
    bounds = [0, *cuts, 5000]
    parts = [nearest(queries, vectors[start:stop], 100 + start, 12, metric) for start, stop in pairwise(bounds)]
    for order in (parts, parts[::-1]):
        merged = Neighbours.merge(order)
        assert np.array_equal(merged.positions, whole.positions)
        assert np.array_equal(merged.scores, whole.scores)
    assert whole.positions[3].tolist() == [107, *range(1100, 1111)]


def test_floor_leaves_out_only_what_other_vectors_exceed():
    vectors, queries = clustered(5000, 24), clustered(20, 24, seed=3)
    metric = Metric("cosine", unit=True)
    whole = nearest(queries, vectors, 0, 10, metric)
    first = nearest(queries, vectors[:2500], 0, 10, metric)
    second = nearest(queries, vectors[2500:], 2500, 10, metric, floor=first.scores[:, -1])
    merged = Neighbours.merge([first, second])
    assert np.array_equal(merged.positions, whole.positions)


@pytest.mark.parametrize("metric", METRICS, ids=str)
def test_left_out_position_is_never_a_neighbour(metric):
    vectors = clustered(5000, 24)
    vectors[4000:4030] = vectors[17]
    own = np.array([17, 4003, 0, 4999, 2048])
    found = nearest(vectors[own], vectors, 0, 10, metric, leave_out=own)
    assert not (found.positions == own[:, None]).any()
    assert_same(found, exact_scores(vectors[own], vectors, metric), 10, own)
    assert found.positions[0].tolist() == list(range(4000, 4010))
    assert found.positions[1].tolist() == [17, 4000, 4001, 4002, *range(4004, 4010)]


@pytest.mark.parametrize("k", [1, 3, 7, 8, 20])
def test_missing_neighbours_are_none(k):
    vectors = clustered(7, 24)
    found = nearest(vectors[:2], vectors, 50, k, Metric("dot"))
    assert found.positions.shape == (2, k)
    assert sorted(found.positions[0][:7]) == sorted(found.positions[0][found.positions[0] != NONE])
    assert (found.positions[:, 7:] == NONE).all()
    assert np.isneginf(found.scores[:, 7:]).all()
    assert found.positions[0, 0] == 50


def test_no_vectors_and_no_queries_give_no_neighbours():
    empty = np.zeros((0, 24), np.float32)
    assert (nearest(clustered(3, 24), empty, 0, 5, Metric("dot")).positions == NONE).all()
    assert nearest(empty, clustered(30, 24), 0, 5, Metric("dot")).positions.shape == (0, 5)


def test_zero_vectors_have_a_score_of_zero():
    vectors = clustered(100, 24)
    vectors[50] = 0
    found = nearest(np.zeros((1, 24), np.float32), vectors, 0, 100, Metric("cosine"))
    assert found.positions[0].tolist() == list(range(100))
    assert (found.scores == 0).all()


def test_many_equal_vectors_take_no_longer_than_others():
    vectors = np.repeat(clustered(1, 256), 60_000, axis=0)
    began = time.monotonic()
    found = nearest(vectors[:200], vectors, 0, 10, Metric("cosine", unit=True), leave_out=np.arange(200))
    assert time.monotonic() - began < 20  # 12 million pairs one by one take minutes
    assert found.positions[0].tolist() == list(range(1, 11))
    assert found.positions[5].tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]


def sparse_vectors(rows: int, seed: int) -> SparseVectors:
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 12, rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = np.concatenate([np.sort(random.choice(60, length, replace=False)) for length in lengths]).astype(np.int32)
    weights = random.integers(1, 9, len(ids)).astype(np.float32) / 4  # sums of products are exact
    return SparseVectors(Ragged(ids, offsets), Ragged(weights, offsets))


def test_sparse_neighbours_equal_those_of_dense_vectors():
    vectors, queries = sparse_vectors(4500, 0), sparse_vectors(25, 1)

    def dense(sparse: SparseVectors) -> np.ndarray:
        filled = np.zeros((len(sparse), 60), np.float32)
        for row in range(len(sparse)):
            filled[row, sparse.ids[row]] = sparse.weights[row]
        return filled

    found = nearest(queries, vectors, 0, 15, Metric("dot"))
    expected, scores = full_sort(exact_scores(dense(queries), dense(vectors), Metric("dot")), 15)
    assert np.array_equal(found.positions, expected)
    assert np.array_equal(found.scores, scores)


def token_vectors(rows: int, seed: int) -> Ragged:
    random = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(random.integers(0, 9, rows))]).astype(np.int64)
    return Ragged(random.integers(-4, 5, (offsets[-1], 8)).astype(np.float32), offsets)


def test_late_neighbours_equal_the_sum_of_the_best_tokens():
    vectors, queries = token_vectors(4500, 0), token_vectors(12, 1)
    scores = np.zeros((12, 4500), np.float32)
    for query in range(12):
        for row in range(4500):
            if len(vectors[row]) and len(queries[query]):
                scores[query, row] = (queries[query] @ vectors[row].T).max(axis=1).sum()
    found = nearest(queries, vectors, 0, 15, Metric("maxsim"))
    expected, best = full_sort(scores, 15)
    assert np.array_equal(found.positions, expected)
    assert np.array_equal(found.scores, best)


@pytest.mark.parametrize("make", [sparse_vectors, token_vectors, lambda rows, seed: clustered(rows, 8, seed)])
def test_taken_and_joined_vectors_are_the_chosen_ones(make):
    vectors: Vectors = make(50, 0)
    order = np.random.default_rng(2).permutation(50)
    shuffled = take(vectors, order)
    restored = take(concatenate([take(shuffled, slice(0, 20)), take(shuffled, slice(20, 50))]), np.argsort(order))
    one, other = (values.ids if isinstance(values, SparseVectors) else values for values in (vectors, restored))
    assert all(np.array_equal(one[row], other[row]) for row in range(50))
    assert len(take(vectors, np.zeros(0, np.int64))) == 0
