"""Exact search over the parts of outputs, against numpy's full sort."""

import numpy as np
import pytest

from tests.index_sources import clustered, open_source, write_source
from tests.outputs import column, write_output
from varve.encoder.ragged import Ragged
from varve.indexing.metric import Metric
from varve.indexing.rows import SparseVectors, concatenate
from varve.indexing.source import IndexSource
from varve.output.run_output import Output
from varve.retrieval.exact_search import search_exact

ROWS, WIDTH = 1000, 32


def full_sort(queries: np.ndarray, vectors: np.ndarray, metric: Metric, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(positions, scores) of the k nearest, computed in float64 and ordered by score and position."""
    one, other = queries.astype(np.float64), vectors.astype(np.float64)
    if metric.name == "euclidean":
        scores = -np.square(one[:, None] - other).sum(axis=2)
    else:
        if metric.name == "cosine":
            one = one / np.linalg.norm(one, axis=1, keepdims=True)
            other = other if metric.unit else other / np.linalg.norm(other, axis=1, keepdims=True)
        scores = one @ other.T
    scores = np.round(scores, 6)  # equal vectors have equal scores
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores, order, axis=1)


def all_vectors(source: IndexSource) -> np.ndarray:
    vectors = concatenate([source.read(part).vectors for part in range(source.num_parts)])
    assert isinstance(vectors, np.ndarray)
    return vectors


def assert_full_sort(source: IndexSource, queries: np.ndarray, k: int) -> None:
    found = search_exact(source, queries, k)
    positions, scores = full_sort(queries, all_vectors(source), source.metric, k)
    np.testing.assert_allclose(found.scores, scores, atol=2e-6)
    assert np.array_equal(found.positions, positions)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "binary"])
@pytest.mark.parametrize("k", [1, 10, 100])
def test_exact_search_with_errors_and_an_empty_part_equals_a_full_sort(dtype, k, tmp_path):
    source = open_source(write_source(tmp_path / "o", dtype=dtype))
    assert_full_sort(source, clustered(20, seed=1), k)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "binary"])
def test_ties_are_ordered_by_position_across_parts(dtype, tmp_path):
    distinct = clustered(7)
    vectors = distinct[np.random.default_rng(3).integers(0, 7, ROWS)]  # about 140 copies of each, in all parts
    feature = column("embedding", WIDTH, normalize=True, dtype=dtype)
    path = write_output(tmp_path / "o", {feature: vectors}, {"doc": np.arange(ROWS)}, rows_per_part=90, errors=(5, 95))
    source = open_source(path, columns=())
    found = search_exact(source, distinct, 300)
    positions, _ = full_sort(distinct, all_vectors(source), source.metric, 300)
    assert np.array_equal(found.positions, positions)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_part_of_several_blocks_equals_a_full_sort(dtype, tmp_path):
    rows, width = 20_000, 16
    feature = column("embedding", width, normalize=True, dtype=dtype)
    options = {"rows_per_part": 19_000, "errors": (1, 9000)}
    path = write_output(tmp_path / "o", {feature: clustered(rows, width)}, {"doc": np.arange(rows)}, **options)
    source = open_source(path, columns=())
    assert sum(1 for _ in source.blocks(0)) > 2
    assert_full_sort(source, clustered(10, width, seed=1), 50)


@pytest.mark.parametrize(("similarity", "name"), [("dot", "dot"), ("euclidean", "euclidean"), ("cosine", "cosine")])
def test_vectors_of_any_length_are_compared_as_declared(similarity, name, tmp_path):
    vectors = clustered(500) * np.random.default_rng(2).uniform(0.2, 5, (500, 1)).astype(np.float32)
    feature = column("embedding", WIDTH, pool="declared")
    path = write_output(tmp_path / "o", {feature: vectors}, {"doc": np.arange(500)}, similarity=similarity)
    source = open_source(path, columns=())
    assert source.metric == Metric(name)
    assert_full_sort(source, clustered(10, seed=1) * 3, 20)


def test_windows_have_positions_of_their_own(tmp_path):
    feature = column("embedding", WIDTH, normalize=True, form="windows")
    path = write_output(
        tmp_path / "o", {feature: clustered(300)}, {"doc": np.arange(300)}, rows_per_part=70, errors=(2,)
    )
    source = open_source(path, columns=())
    assert source.num_vectors == 299
    assert_full_sort(source, clustered(5, seed=1), 10)


def test_more_neighbours_than_vectors_are_all_vectors(tmp_path):
    path = write_output(tmp_path / "o", {column("embedding", 8): clustered(5, 8)}, {"doc": np.arange(5)}, errors=(1,))
    found = search_exact(open_source(path, columns=()), clustered(2, 8, seed=1), 50)
    assert found.positions.shape == (2, 4)
    assert np.array_equal(np.sort(found.positions), [[0, 1, 2, 3]] * 2)
    assert np.isfinite(found.scores).all()


def test_result_does_not_depend_on_the_number_of_queries_or_parts(tmp_path):
    queries = clustered(2100, seed=1)  # more than are compared at once
    one = open_source(write_source(tmp_path / "one"))
    many = open_source(write_source(tmp_path / "many", rows_per_part=31))
    whole = search_exact(one, queries, 10)
    other = search_exact(many, queries, 10)
    assert np.array_equal(whole.positions, other.positions)
    assert np.array_equal(whole.scores, other.scores)
    alone = search_exact(one, queries[2050:2051], 10)
    assert np.array_equal(alone.positions[0], whole.positions[2050])
    assert np.array_equal(alone.scores[0], whole.scores[2050])


def test_zero_vectors_have_the_score_zero_and_no_nan(tmp_path):
    vectors = clustered(50)
    vectors[7] = 0
    path = write_output(tmp_path / "o", {column("embedding", WIDTH): vectors * 3}, {"doc": np.arange(50)})
    source = open_source(path, columns=())
    found = search_exact(source, np.concatenate([clustered(3, seed=1), np.zeros((1, WIDTH), np.float32)]), 50)
    assert np.isfinite(found.scores).all()
    assert (found.scores[found.positions == 7] == 0).all()
    assert np.array_equal(found.positions[3], np.arange(50))


def test_sparse_vectors_equal_a_full_sort(run_job, declared):
    output = run_job(declared("SPLADE max"), [f"text number {n} of a dog" for n in range(40)] + [None, "", "fox"])
    source = IndexSource.open(output)
    vectors = source.at(np.arange(source.num_vectors))
    assert isinstance(vectors, SparseVectors)
    dense = spread_out(vectors, source.width)
    found = search_exact(source, source.at(np.arange(5)), 8)
    want = np.argsort(-np.round(dense[:5] @ dense.T, 6), axis=1, kind="stable")[:, :8]
    assert np.array_equal(found.positions, want)


def test_late_interaction_equals_maxsim_of_every_pair(run_job, declared):
    texts = [f"text {n} of a dog" if n % 3 else f"{n} foxes, (and) more; words" for n in range(30)] + [None, "!?", "x"]
    output = run_job(declared("PyLate with expansion"), texts, role="document", rows_per_part=8)
    source = IndexSource.open(output)
    vectors = source.at(np.arange(source.num_vectors))
    assert isinstance(vectors, Ragged)
    queries = Ragged(vectors.values[: vectors.offsets[4]], vectors.offsets[:5])
    found = search_exact(source, queries, 6)
    scores = np.array([[maxsim(queries[q], vectors[n]) for n in range(len(vectors))] for q in range(4)])
    want = np.argsort(-np.round(scores, 5), axis=1, kind="stable")[:, :6]
    np.testing.assert_allclose(found.scores, np.take_along_axis(scores, want, axis=1), rtol=1e-5)
    assert np.array_equal(found.positions, want)


def maxsim(query: np.ndarray, text: np.ndarray) -> float:
    return float((query @ text.T).max(axis=1).sum()) if len(text) else 0.0


def spread_out(vectors: SparseVectors, width: int) -> np.ndarray:
    dense = np.zeros((len(vectors), width))
    for number in range(len(vectors)):
        dense[number, vectors.ids[number]] = vectors.weights[number]
    return dense


def test_output_is_not_changed_by_a_search(tmp_path):
    path = write_source(tmp_path / "o")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "o").rglob("*")}
    search_exact(IndexSource.open(Output.open(path)), clustered(1), 3)
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "o").rglob("*")}
