"""Figures of a report against plain numpy in float64, computed another way."""

import numpy as np
import pytest

from tests.outputs import column
from varve.exploration.measures import cross_products, layer_similarity
from varve.exploration.measures.layer_similarity import compare_layers
from varve.exploration.measures.neighbourhoods import near_duplicates, nearest_rows
from varve.exploration.measures.principal_components import PrincipalComponents
from varve.exploration.measures.scripts import count_scripts
from varve.exploration.measures.vector_statistics import describe_vectors, mean_cosine, random_pairs


def correlated(rows: int, width: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(rows, width)) @ random.normal(size=(width, width)) + random.normal(size=width) * 3
    return mixed.astype(np.float32)


def plain_cosines(vectors: np.ndarray) -> np.ndarray:
    exact = vectors.astype(np.float64)
    lengths = np.sqrt((exact**2).sum(axis=1))
    return exact @ exact.T / np.outer(lengths, lengths)


def hsic(one: np.ndarray, other: np.ndarray) -> float:
    """Of two (N, N) Gram matrices: Gretton et al. 2005."""
    rows = len(one)
    centre = np.eye(rows) - np.ones((rows, rows)) / rows
    return float(np.trace(one @ centre @ other @ centre))


def test_cka_equals_the_form_of_gram_matrices(monkeypatch):
    monkeypatch.setattr(cross_products, "_BLOCK_ROWS", 37)
    first = correlated(200, 12)
    features = {"a": first, "b": first[:, :5] * 2 + correlated(200, 5, 1), "c": correlated(200, 30, 2)}
    found = compare_layers(features)
    assert found is not None
    grams = [each.astype(np.float64) @ each.astype(np.float64).T for each in features.values()]
    expected = [[hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y)) for y in grams] for x in grams]
    assert found.names == ("a", "b", "c")
    assert np.allclose(found.values, expected, atol=1e-9)
    assert found.num_rows == 200


def test_cka_of_many_wide_features_takes_rows_at_equal_steps(monkeypatch):
    monkeypatch.setattr(layer_similarity, "_MAX_PRODUCTS", 100 * (8 + 8) ** 2 / 2)
    monkeypatch.setattr(layer_similarity, "_MIN_ROWS", 10)
    features = {"a": correlated(1000, 8), "b": correlated(1000, 8, 1)}
    found = compare_layers(features)
    steps = np.linspace(0, 999, 100).astype(int)
    expected = compare_layers({name: each[steps] for name, each in features.items()})
    assert found is not None
    assert expected is not None
    assert found.num_rows == 100
    assert np.array_equal(found.values, expected.values)


def test_cka_of_equal_vectors_is_zero_and_of_one_feature_is_none():
    found = compare_layers({"a": np.ones((10, 3), np.float32), "b": correlated(10, 3)})
    assert found is not None
    assert found.values.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert compare_layers({"a": correlated(10, 3)}) is None


def test_spectrum_and_effective_rank_equal_those_of_singular_values():
    vectors = correlated(300, 20)
    components = PrincipalComponents.of(vectors)
    centred = vectors.astype(np.float64) - vectors.astype(np.float64).mean(axis=0)
    singular = np.linalg.svd(centred, compute_uv=False)
    assert np.allclose(components.shares, singular**2 / (singular**2).sum(), atol=1e-12)
    shares = singular / singular.sum()
    assert components.effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-9)


def test_positions_of_a_map_are_the_first_two_components():
    vectors = correlated(100, 9)
    components = PrincipalComponents.of(vectors)
    centred = vectors.astype(np.float64) - vectors.astype(np.float64).mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    expected = centred @ axes[:2].T
    found = components.project(vectors)
    assert np.allclose(abs(found), abs(expected), atol=1e-6)
    assert PrincipalComponents.of(vectors[:, :1]).project(vectors[:, :1]).shape == (100, 2)


def test_effective_rank_of_equal_vectors_is_zero():
    components = PrincipalComponents.of(np.ones((5, 4), np.float32))
    assert components.effective_rank == 0
    assert components.shares.tolist() == [0, 0, 0, 0]


def test_anisotropy_is_the_mean_cosine_of_the_drawn_pairs():
    vectors = correlated(150, 6)
    one, other = random_pairs(150, 5)
    assert (one != other).all()
    assert len(np.unique(other - one)) > 100
    assert mean_cosine(vectors, 5) == pytest.approx(plain_cosines(vectors)[one, other].mean(), rel=1e-12)
    assert mean_cosine(vectors[:1], 5) == 0.0
    assert mean_cosine(np.zeros((3, 2), np.float32), 5) == 0.0


def test_norms_are_counted_in_bins_that_cover_all_of_them():
    vectors = correlated(500, 8)
    found = describe_vectors(column("v", 8), vectors, None, 0, None)
    norms = np.sqrt((vectors.astype(np.float64) ** 2).sum(axis=1))
    counts, edges = np.histogram(norms, 41)
    assert found.mean_norm == pytest.approx(norms.mean(), rel=1e-12)
    assert found.norm_counts == tuple(counts)
    assert np.allclose(found.norm_edges, edges)


def test_norms_of_unit_vectors_are_not_spread_over_the_histogram():
    vectors = correlated(500, 8)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = describe_vectors(column("v", 8, normalize=True), vectors, None, 0, None)
    assert max(found.norm_counts) >= 495
    assert found.norm_edges[0] == pytest.approx(0.995, abs=1e-3)
    assert sum(found.norm_counts) == 500


def test_neighbours_equal_a_full_sort_of_cosines():
    vectors = correlated(400, 16)
    vectors[[10, 20, 30]] = vectors[5]  # equal neighbours are ordered by position
    rows = np.array([5, 100, 399])
    found, scores = nearest_rows(vectors, rows, 5)
    cosines = plain_cosines(vectors)
    np.fill_diagonal(cosines, -2)
    assert found[0, :3].tolist() == [10, 20, 30]
    assert np.allclose(scores, -np.sort(-cosines[rows], axis=1)[:, :5], atol=1e-12)
    assert np.allclose(cosines[rows[:, None], found], scores, atol=1e-12)


def test_near_duplicates_equal_all_pairs_of_cosines():
    random = np.random.default_rng(1)
    vectors = np.repeat(random.normal(size=(500, 24)), 3, axis=0) + random.normal(size=(1500, 24)) * 0.2
    vectors = vectors.astype(np.float32)
    vectors[700], vectors[900] = vectors[3], vectors[3]
    found = near_duplicates(vectors, 0.95, 20)
    cosines = plain_cosines(vectors)
    one, other = np.nonzero(np.triu(cosines >= 0.95, 1))
    assert found.num_pairs == len(one) > 100
    assert found.num_equal == 3
    assert np.allclose(found.scores, -np.sort(-cosines[one, other])[:20], atol=1e-12)
    assert np.allclose(found.scores, cosines[found.one, found.other], atol=1e-12)
    assert set(zip(found.one[:3].tolist(), found.other[:3].tolist(), strict=True)) == {(3, 700), (3, 900), (700, 900)}


def test_near_duplicates_do_not_count_zero_vectors():
    found = near_duplicates(np.zeros((30, 4), np.float32), 0.95, 20)
    assert (found.num_pairs, found.num_equal, len(found.one)) == (0, 0, 0)


def test_scripts_of_letters_are_their_shares():
    text = "ab c привет 漢字 ひ カ 한 \uff41\uff42 \U0001d400 12 .!🙂"
    shares = dict(count_scripts([text, "\ud800 ב"]))
    letters = 3 + 6 + 2 + 1 + 1 + 1 + 2 + 1 + 1
    expected = {"Latin": 5, "Cyrillic": 6, "Han": 2, "Hiragana": 1, "Katakana": 1, "Hangul": 1, "Hebrew": 1}
    assert shares == pytest.approx({name: count / letters for name, count in {**expected, "other letters": 1}.items()})
    assert next(iter(shares)) == "Cyrillic"
    assert count_scripts(["123", ""]) == ()
