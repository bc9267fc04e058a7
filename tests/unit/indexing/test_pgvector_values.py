"""Sparse vectors in a real server, and values that PostgreSQL refuses."""

from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest

from tests.index_sources import build, clustered
from tests.outputs import column, write_output
from tests.servers.postgres import Database, postgres, source_of
from varve.encoder.ragged import Ragged
from varve.errors import JobError, RunError
from varve.indexing.neighbours import nearest


@pytest.fixture(scope="module")
def server():
    with postgres() as server:
        yield server


@pytest.fixture
def database(server):
    return Database(server, server.create_database())


def write_sparse(path, rows: int, most: int, width: int = 5000) -> str:
    """An output with sparse vectors of 1 to `most` weights; the last one has `most`, the first one also a zero."""
    random = np.random.default_rng(3)
    counts = np.append(random.integers(1, most + 1, rows - 1), most)
    ids = [np.sort(random.choice(width, count, replace=False)).astype(np.int32) for count in counts]
    weights = [random.uniform(0.1, 2, count).astype(np.float32) for count in counts]
    weights[0][0] = 0

    def stored(_features, start: int, stop: int, encoded: np.ndarray) -> dict:
        kept = np.flatnonzero(encoded) + start
        offsets = np.concatenate([[0], np.cumsum(counts[kept])])
        lists = {"s_ids": ids, "s_weights": weights}
        return {name: Ragged(np.concatenate([values[row] for row in kept]), offsets) for name, values in lists.items()}

    with patch("tests.outputs._stored", stored):
        kept = {"id": np.arange(rows)}
        return write_output(path, {column("s", width, form="sparse"): None}, kept, rows_per_part=150, errors=(2,))


def type_of_embedding(database) -> str:
    statement = "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'docs'::regclass"
    return database.query(f"{statement} AND attname = 'embedding'")[0][0]


def test_pgvector_key_with_duplicates_is_refused_with_two_examples(database, tmp_path):
    kept = {"doc_id": [f"doc-{row // 2 if row < 8 else row}" for row in range(100)]}
    path = write_output(tmp_path / "output", {column("e", 8): clustered(100, 8)}, kept)
    target = database.target(path, key="doc_id")
    with pytest.raises(
        JobError, match=r"--key doc_id: the column is not unique: 'doc-0' \(2 rows\) and 'doc-1' \(2 rows\)"
    ):
        build(target, source_of(target), "postgresql")
    assert target.published() is None


def test_pgvector_key_with_null_is_refused_with_its_row(database, tmp_path):
    kept = {"doc_id": pa.array([None if row == 42 else row for row in range(100)], pa.int64())}
    path = write_output(tmp_path / "output", {column("e", 8): clustered(100, 8)}, kept)
    target = database.target(path, key="doc_id")
    with pytest.raises(JobError, match="--key doc_id: it is null in shard 0, row 42"):
        build(target, source_of(target), "postgresql")


def test_pgvector_nul_character_is_refused_with_its_row(database, tmp_path):
    kept = {"title": ["a\0b" if row == 17 else "a" for row in range(100)]}
    path = write_output(tmp_path / "output", {column("e", 8): clustered(100, 8)}, kept)
    target = database.target(path, keep=("title",))
    with pytest.raises(RunError, match="'title' has a NUL character in shard 0, row 17"):
        build(target, source_of(target), "postgresql")


def test_pgvector_infinite_value_is_refused_with_its_row(database, tmp_path):
    vectors = clustered(100, 8)
    vectors[55, 3] = np.inf
    path = write_output(tmp_path / "output", {column("e", 8): vectors}, {"id": np.arange(100)})
    target = database.target(path)
    with pytest.raises(RunError, match="the vector of shard 0, row 55 cannot be stored as vector"):
        build(target, source_of(target), "postgresql")


def test_pgvector_sparse_build_equals_exact_neighbours(database, tmp_path):
    path = write_sparse(tmp_path / "output", rows=400, most=60)
    for kind in ("flat", "hnsw"):
        target = database.target(path, key="id", kind=kind)
        source = source_of(target)
        _, record = build(target, source, "postgresql")
        asked = source.at(np.arange(30))
        exact = nearest(asked, source.at(np.arange(source.num_vectors)), 0, 10, source.metric)
        with target.open(record) as searcher:
            found = searcher.search(asked, 10, {"ef_search": 1000})
            assert searcher.dense_at(np.arange(3)) is None
        np.testing.assert_allclose(found.scores, exact.scores, rtol=1e-5)
        assert type_of_embedding(database) == f"sparsevec({source.width})"


def test_pgvector_sparse_values_are_those_of_the_source(database, tmp_path):
    path = write_sparse(tmp_path / "output", rows=50, most=20)
    target = database.target(path, key="id")
    source = source_of(target)
    build(target, source, "postgresql")
    stored = database.query("SELECT embedding::text FROM docs ORDER BY position")
    vectors = source.at(np.arange(source.num_vectors))
    for row, (text,) in enumerate(stored):
        pairs = [pair.split(":") for pair in text.partition("}")[0].strip("{").split(",") if pair]
        kept = vectors.weights[row] != 0
        assert [int(dimension) - 1 for dimension, _ in pairs] == vectors.ids[row][kept].tolist()
        assert [np.float32(weight) for _, weight in pairs] == vectors.weights[row][kept].tolist()


def test_pgvector_sparse_vector_with_too_many_weights_is_refused_for_a_graph(database, tmp_path):
    path = write_sparse(tmp_path / "output", rows=20, most=1200)
    target = database.target(path, key="id", kind="hnsw")
    with pytest.raises(JobError, match="has 1,200 weights; HNSW holds at most 1,000"):
        target.check(source_of(target))
    flat = database.target(path, key="id", kind="flat")
    _, record = build(flat, source_of(flat), "postgresql")
    assert flat.verify(record) == []
