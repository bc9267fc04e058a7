import numpy as np
import pytest

from tests.index_sources import clustered, open_source, write_source
from varve.indexing.neighbours import Neighbours, nearest
from varve.indexing.recall import DEPTH, Proof, ProofQueries, measure, prove
from varve.indexing.target import Kind

KIND = Kind("numpy", 128.0, ({"searched": 100}, {"searched": 500}, {"searched": 2000}))


class Scan:
    """Searches the first `searched` vectors exactly."""

    def __init__(self, vectors, *, metric="dot", shuffled=False):
        self.vectors, self.metric = vectors, metric
        self.ids = np.random.default_rng(0).permutation(len(vectors)) if shuffled else np.arange(len(vectors))

    def search(self, queries, k, setting):
        vectors = self.vectors[: setting["searched"]]
        scores = queries @ vectors.T
        if self.metric == "euclidean":
            scores = 2 * scores - np.square(vectors).sum(axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return Neighbours(self.ids[order], np.take_along_axis(scores, order, axis=1))


def proof_of(source, queries, positions=None, name="rows"):
    vectors = source.at(np.arange(source.num_vectors))
    exact = nearest(queries, vectors, 0, DEPTH, source.metric, leave_out=positions)
    return Proof(ProofQueries(name, queries, positions), exact)


def leave_one_out(source, rows=200):
    positions = source.sample_positions(rows, seed=0)
    return proof_of(source, source.at(positions), positions)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_source(write_source(tmp_path_factory.mktemp("run") / "features"))


@pytest.fixture(scope="module")
def vectors(source):
    return source.at(np.arange(source.num_vectors))


def test_recall_of_a_full_scan_is_one_and_its_interval_is_a_point(source, vectors):
    measured = measure(Scan(vectors), source, KIND, leave_one_out(source), {"searched": 2000}, deep=True)
    assert measured.recall == {"1": 1.0, "10": 1.0, "100": 1.0}
    assert (measured.low, measured.high, measured.num_queries) == (1.0, 1.0, 200)


def test_recall_of_rows_agrees_with_that_of_other_rows(source, vectors):
    others = clustered(1500)[1000:]  # of the same clusters, not in the index
    setting = {"searched": 700}
    of_rows = measure(Scan(vectors), source, KIND, leave_one_out(source, 900), setting).recall["10"]
    of_others = measure(Scan(vectors), source, KIND, proof_of(source, others), setting).recall["10"]
    assert of_rows == pytest.approx(of_others, abs=0.05)
    assert 0.5 < of_rows < 0.9


def test_recall_counts_a_query_that_finds_itself_as_nothing(source, vectors):
    """An index that holds only the asked rows finds each query, and none of its neighbours."""
    proof = leave_one_out(source)
    alone = np.full_like(vectors, -1.0)
    alone[proof.queries.positions] = vectors[proof.queries.positions]
    itself = measure(Scan(alone), source, KIND, proof, {"searched": 2000}).recall["10"]
    assert itself < 0.5


def test_recall_counts_a_repeated_position_once(source, vectors):
    class Repeats(Scan):
        def search(self, queries, k, setting):
            found = super().search(queries, k, setting)
            return Neighbours(np.repeat(found.positions[:, 1:2], k, axis=1), found.scores)

    measured = measure(Repeats(vectors), source, KIND, leave_one_out(source), {"searched": 2000})
    assert measured.recall["10"] == pytest.approx(0.1, abs=0.001)


def test_recall_counts_any_of_equally_near_vectors_as_found(tmp_path):
    """Two texts make up the whole index: hundreds of vectors are as near as the tenth."""
    rows, width = 1000, 8
    two = np.eye(width, dtype=np.float32)[np.arange(rows) % 2]
    source = open_source(_write(tmp_path, two))
    reverse = Scan(two[np.arange(rows)[::-1]])
    reverse.ids = np.arange(rows)[::-1].copy()
    measured = measure(reverse, source, KIND, leave_one_out(source, 50), {"searched": 2000}, deep=True)
    assert measured.recall == {"1": 1.0, "10": 1.0, "100": 1.0}


def _write(folder, vectors):
    from tests.outputs import column, write_output

    kept = {"doc_id": [str(row) for row in range(len(vectors))], "title": ["t"] * len(vectors)}
    return write_output(folder / "features", {column("embedding", vectors.shape[1]): vectors}, kept)


def test_proof_raises_the_setting_until_the_low_end_reaches_the_recall(source, vectors):
    measured, setting = prove(Scan(vectors), source, KIND, [leave_one_out(source)], 0.95)
    assert setting == {"searched": 2000}
    assert [m.setting["searched"] for m in measured] == [100, 500, 2000]
    assert measured[0].recall["10"] < measured[1].recall["10"] < measured[2].recall["10"]
    assert "100" in measured[-1].recall
    low, setting = prove(Scan(vectors), source, KIND, [leave_one_out(source)], measured[0].low)
    assert (setting, len(low)) == ({"searched": 100}, 1)


def test_proof_needs_the_recall_of_the_queries_too(source, vectors):
    """Queries near the last rows find little in the first ones, where rows are found."""
    kind = Kind("numpy", 128.0, ({"searched": 997},))
    half = Scan(vectors.copy())
    half.vectors[500:] = 0
    rows = leave_one_out(source)
    target = measure(half, source, kind, rows, kind.settings[0]).low
    assert prove(half, source, kind, [rows], target)[1] is not None
    far = proof_of(source, vectors[900:997], np.arange(900, 997), name="q.jsonl")
    measured, setting = prove(half, source, kind, [rows, far], target + 0.2)
    assert setting is None
    assert [m.queries for m in measured] == ["rows", "q.jsonl"]


@pytest.mark.parametrize("fault", ["shuffled", "dropped"])
def test_sabotaged_index_does_not_reach_the_recall(source, vectors, fault):
    scan = Scan(vectors, shuffled=fault == "shuffled")
    if fault == "dropped":
        scan.vectors = np.where(np.arange(len(vectors))[:, None] % 2 == 0, vectors, -vectors)
    assert prove(scan, source, KIND, [leave_one_out(source)], 0.9)[1] is None


def test_index_of_the_wrong_metric_does_not_reach_the_recall(tmp_path):
    """Dot products of vectors of different lengths rank in another order than their distances."""
    random = np.random.default_rng(0)
    vectors = clustered(1000) * random.uniform(0.2, 3, (1000, 1)).astype(np.float32)
    from tests.outputs import column, write_output

    features = {column("embedding", 32, pool="declared"): vectors}
    kept = {"doc_id": ["d"] * 1000, "title": ["t"] * 1000}
    source = open_source(write_output(tmp_path / "features", features, kept, similarity="dot"))
    assert source.metric.name == "dot"
    assert prove(Scan(vectors), source, KIND, [leave_one_out(source)], 0.9)[1] == {"searched": 2000}
    assert prove(Scan(vectors, metric="euclidean"), source, KIND, [leave_one_out(source)], 0.9)[1] is None
