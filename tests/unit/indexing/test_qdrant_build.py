"""Builds in Qdrant's own engine: points, graphs, aliases, and what a repeated build adds."""

import os
import uuid
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pytest
from qdrant_client import QdrantClient, models

from tests.index_sources import build, clustered, open_source, write_source
from tests.list_sources import write_late, write_sparse
from tests.outputs import column, write_output
from tests.servers.qdrant import qdrant
from varve.config.index import Index
from varve.encoder.ragged import Ragged
from varve.errors import JobError, RunError
from varve.indexing.neighbours import nearest
from varve.indexing.qdrant.qdrant_target import QdrantTarget
from varve.indexing.row_check import check_rows
from varve.indexing.rows import concatenate

ROWS = 1000


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with qdrant(tmp_path_factory.mktemp("qdrant")) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    client = QdrantClient(url=f"http://{server.host}", check_compatibility=False)
    yield client
    client.close()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_source(write_source(tmp_path_factory.mktemp("source") / "run", ROWS))


def target_of(server, name: str, source, **settings) -> QdrantTarget:
    to = f"{server.address}/{name}"
    index = Index(path=source.output.storage.uri, to=to, **settings)
    return QdrantTarget(index.destination, index)


def positions(start: int, stop: int) -> models.FilterSelector:
    within = models.FieldCondition(key="position", range=models.Range(gte=start, lt=stop))
    return models.FilterSelector(filter=models.Filter(must=[within]))


def recall(searcher, source, setting: dict, k: int = 10) -> float:
    vectors = source.dense_at(np.arange(source.num_vectors))
    queries = vectors[::10]
    exact = nearest(queries, vectors, 0, k, source.metric).positions
    found = searcher.search(queries, k, setting).positions
    return float(np.mean([len({*f} & {*e}) for f, e in zip(found.tolist(), exact.tolist(), strict=True)])) / k


def test_build_holds_every_row_of_the_source_bit_for_bit(server, source):
    target = target_of(server, "whole", source, key="doc_id", keep=("title",))
    _, record = build(target, source, "qdrant")
    assert record == target.published()
    with target.open(record) as searcher:
        positions = np.arange(source.num_vectors)
        expected = [source.read(part) for part in range(source.num_parts)]
        assert searcher.rows(positions).equals(pa.concat_tables([rows.ids for rows in expected]))
        stored = searcher.dense_at(positions)
        assert stored is not None
        assert stored.tobytes() == np.concatenate([rows.dense for rows in expected]).tobytes()
        check_rows(searcher, source)
    assert source.num_vectors == ROWS - 3
    assert target.verify(record) == []


def test_build_names_points_by_the_key_and_else_by_shard_and_row(server, source, client):
    build(target_of(server, "keyed", source, key="doc_id"), source, "qdrant")
    build(target_of(server, "unkeyed", source), source, "qdrant")
    names = {"keyed": "doc-7", "unkeyed": "0/7"}
    for collection, name in names.items():
        where = models.Filter(must=[models.FieldCondition(key="position", match=models.MatchAny(any=[6]))])
        (point,), _ = client.scroll(collection, scroll_filter=where)
        assert point.payload["row"] == 7
        assert point.id == str(uuid.uuid5(uuid.NAMESPACE_URL, name))


def test_recall_rises_with_hnsw_ef(server, tmp_path):
    random = np.random.default_rng(0).normal(size=(4000, 32)).astype(np.float32)
    unit = random / np.linalg.norm(random, axis=1, keepdims=True)
    feature = column("embedding", 32, pool="mean", layer=12, normalize=True)
    source = open_source(write_output(tmp_path / "run", {feature: unit}, {"id": np.arange(4000)}), ("id",))
    target = target_of(server, "recall", source, kind="hnsw,m=4,ef=16")
    _, record = build(target, source, "qdrant")
    with target.open(record) as searcher:
        found = [recall(searcher, source, {"hnsw_ef": ef}) for ef in (10, 40, 160, 640)]
    assert found == sorted(found)
    assert found[0] < 0.7
    assert found[-1] > 0.99


def test_second_kind_rebuilds_the_graph_of_the_same_points(server, source, client):
    target = target_of(server, "kinds", source)
    one, other, quantized = target.kinds(source)
    assert [one.name, other.name, quantized.name] == ["hnsw", "hnsw,m=32,ef=256", "hnsw,int8"]
    build(target, source, "qdrant", one)
    assert target.added(other, source) == {*range(source.num_parts)}
    for kind, m in ((other, 32), (quantized, 16)):
        target.finish(kind, source, 0)
        assert client.get_collection("kinds").config.hnsw_config.m == m
        with target.searcher(kind, source) as searcher:
            assert recall(searcher, source, kind.settings[-1]) > 0.99
            check_rows(searcher, source)
    assert quantized.bytes_per_vector < one.bytes_per_vector


def test_exact_kind_scans_all_points(server, source, client):
    target = target_of(server, "exact", source, kind="exact")
    kind, record = build(target, source, "qdrant")
    assert kind.settings == ({},)
    assert client.get_collection("exact").config.hnsw_config.m == 0
    with target.open(record) as searcher:
        assert recall(searcher, source, {}) == 1.0


def test_unknown_kind_is_refused_with_the_known_ones(server, source):
    with pytest.raises(JobError, match="'IVF_PQ' does not exist in Qdrant: expected exact, hnsw"):
        target_of(server, "unknown", source, kind="IVF_PQ").kinds(source)


def test_added_names_exactly_the_complete_parts(server, source, client):
    target = target_of(server, "resumed", source)
    kind = target.kinds(source)[0]
    target.train(kind, source)
    empty = {part for part in range(source.num_parts) if source.starts[part] == source.starts[part + 1]}
    assert empty
    assert target.added(kind, source) == empty
    for part in (1, 4):
        target.add(kind, source, source.read(part))
    assert target.added(kind, source) == empty | {1, 4}
    (name,) = [each.name for each in client.get_collections().collections if each.name.startswith("resumed__")]
    client.delete(name, positions(int(source.starts[4]), int(source.starts[4]) + 1))
    assert target.added(kind, source) == empty | {1}
    target.add(kind, source, source.read(4))
    target.add(kind, source, source.read(4))  # again: the same points
    assert target.added(kind, source) == empty | {1, 4}
    assert client.count(name).count == sum(int(np.diff(source.starts)[part]) for part in (1, 4))


def test_finish_refuses_missing_points(server, source):
    target = target_of(server, "unfinished", source)
    kind = target.kinds(source)[0]
    target.train(kind, source)
    target.add(kind, source, source.read(0))
    with pytest.raises(RunError, match=f"has 149 points, expected {ROWS - 3}"):
        target.finish(kind, source, 0)
    assert target.published() is None


def test_alias_is_switched_from_the_old_collection_which_is_then_deleted(server, source, client, tmp_path):
    build(target_of(server, "switched", source), source, "qdrant")
    old = [each.name for each in client.get_collections().collections if each.name.startswith("switched__")]
    changed = open_source(write_source(tmp_path / "run", ROWS, errors=(1,)))
    target = target_of(server, "switched", changed)
    kind = target.kinds(changed)[0]
    steps = []
    target.check(changed)
    target.train(kind, changed)
    for part in range(changed.num_parts):
        target.add(kind, changed, changed.read(part))
        steps.append(client.count("switched").count)
    target.finish(kind, changed, 0)
    steps.append(client.count("switched").count)
    assert {*steps} == {ROWS - 3}, "readers see the old collection, complete, until the new one is published"
    _, record = build(target, changed, "qdrant")
    assert client.count("switched").count == ROWS - 1
    assert record.details["replaced"] == old[0]
    left = [each.name for each in client.get_collections().collections if each.name.startswith("switched__")]
    assert left == [record.details["collection"]]
    assert target.published() == record
    assert build(target, changed, "qdrant")[1] == record, "a repeated build changes nothing"
    target.clean(record)
    assert client.count("switched").count == ROWS - 1


def test_collection_of_the_name_is_refused(server, source, client):
    client.create_collection("theirs", vectors_config=models.VectorParams(size=2, distance=models.Distance.DOT))
    target = target_of(server, "theirs", source)
    assert target.published() is None
    with pytest.raises(JobError, match="theirs is a collection"):
        target.check(source)


def test_alias_of_another_program_is_refused(server, source, client):
    client.create_collection("foreign_1", vectors_config=models.VectorParams(size=2, distance=models.Distance.DOT))
    create = models.CreateAlias(collection_name="foreign_1", alias_name="foreign")
    client.update_collection_aliases([models.CreateAliasOperation(create_alias=create)])
    with pytest.raises(JobError, match="alias of the collection foreign_1, which Varve did not make"):
        target_of(server, "foreign", source).check(source)


def test_verify_names_a_removed_point(server, source, client):
    target = target_of(server, "removed", source)
    _, record = build(target, source, "qdrant")
    client.delete(record.details["collection"], positions(123, 125))
    (failure,) = target.verify(record)
    assert f"has {ROWS - 5} points, expected {ROWS - 3}" in failure
    assert failure.endswith("missing are the positions 123, 124")


def test_verify_finds_changed_vectors(server, source, client):
    target = target_of(server, "changed", source)
    _, record = build(target, source, "qdrant")
    points, _ = client.scroll("changed", limit=ROWS, with_vectors=True)
    moved = [models.PointStruct(id=p.id, vector=[-x for x in p.vector], payload=p.payload) for p in points]
    client.upsert("changed", moved)
    (failure,) = target.verify(record)
    assert failure == f"{target.address}: the vectors of sampled positions have changed since the publication"


def test_sparse_feature_is_found_and_read_back(server, tmp_path):
    source = open_source(write_sparse(tmp_path / "run", rows=200), ("id", "title"))
    target = target_of(server, "sparse", source, key="id")
    kind, record = build(target, source, "qdrant")
    assert kind.name == "exact"
    vectors = concatenate([source.read(part).vectors for part in range(source.num_parts)])
    queries = source.at(np.arange(0, 199, 20))
    exact = nearest(queries, vectors, 0, 10, source.metric)
    with target.open(record) as searcher:
        found = searcher.search(queries, 10, {})
        check_rows(searcher, source)
    assert np.allclose(found.scores, exact.scores, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_late_feature_is_found_by_maxsim(server, tmp_path, dtype, kind):
    source = open_source(write_late(tmp_path / "run", rows=300, dtype=dtype), ("id",))
    target = target_of(server, f"late-{dtype}-{kind}", source, key="id", kind=kind)
    chosen, record = build(target, source, "qdrant")
    vectors = concatenate([source.read(part).vectors for part in range(source.num_parts)])
    assert isinstance(vectors, Ragged)
    filled = np.flatnonzero(np.diff(vectors.offsets))
    queries = source.at(filled[:20])
    exact = nearest(queries, vectors, 0, 5, source.metric)
    with target.open(record) as searcher:
        found = searcher.search(queries, 5, chosen.settings[-1])
        check_rows(searcher, source)
    assert len(filled) < source.num_vectors, "some rows have no tokens"
    assert np.allclose(found.scores, exact.scores, atol=2e-3 if dtype == "float16" else 1e-5)


@pytest.mark.parametrize(
    ("similarity", "normalize"), [("cosine", False), ("dot", False), ("euclidean", False), ("cosine", True)]
)
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_metrics_and_dtypes_rank_as_the_exact_search_does(server, tmp_path, similarity, normalize, dtype):
    vectors = clustered(400, 16)
    scaled = vectors if normalize else vectors * np.linspace(0.5, 3, 400, dtype=np.float32)[:, None]
    feature = column("embedding", 16, pool="declared", layer=12, normalize=normalize, dtype=dtype)
    path = write_output(tmp_path / "run", {feature: scaled}, {"id": np.arange(400)}, similarity=similarity)
    source = open_source(path, ("id",))
    target = target_of(server, f"metric-{similarity}-{normalize}-{dtype}", source, kind="exact")
    _, record = build(target, source, "qdrant")
    queries = source.dense_at(np.arange(0, 400, 10))
    exact = nearest(queries, source.dense_at(np.arange(400)), 0, 10, source.metric)
    with target.open(record) as searcher:
        found = searcher.search(queries, 10, {})
        check_rows(searcher, source)
    assert np.allclose(found.scores, exact.scores, rtol=5e-3, atol=5e-3)
    assert np.mean(found.positions == exact.positions) > 0.95


def test_windows_of_a_row_are_points_of_their_own(server, tmp_path):
    feature = column("embedding", 16, pool="mean", layer=12, normalize=True, form="windows")
    path = write_output(tmp_path / "run", {feature: clustered(90, 16)}, {"id": [f"d{n}" for n in range(90)]})
    source = open_source(path, ("id",))
    target = target_of(server, "windows", source, key="id")
    _, record = build(target, source, "qdrant")
    with target.open(record) as searcher:
        (row,) = searcher.rows(np.array([5])).to_pylist()
    assert row == {"position": 5, "shard": 0, "row": 5, "item": 0, "id": "d5"}


@contextmanager
def environment(**variables: str):
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_build_survives_refused_requests_and_lost_answers(tmp_path, source):
    with qdrant(tmp_path / "server", "--refuse", "0.15", "--lose", "0.1", "--seed", "1") as server:
        target = target_of(server, "faults", source, key="doc_id")
        _, record = build(target, source, "qdrant")
        assert target.verify(record) == []
        with target.open(record) as searcher:
            check_rows(searcher, source)


def test_graph_is_built_after_a_restart_of_the_server(tmp_path, source):
    with qdrant(tmp_path / "server") as server:
        target = target_of(server, "restarted", source)
        kind = target.kinds(source)[0]
        target.train(kind, source)
        for part in range(source.num_parts):
            target.add(kind, source, source.read(part))
        target.finish(kind, source, 0)
        server.kill()
        server.start()
        assert target.added(kind, source) == {*range(source.num_parts)}
        _, record = build(target, source, "qdrant")
        with target.open(record) as searcher:
            assert recall(searcher, source, kind.settings[-1]) > 0.99


def test_key_is_taken_from_the_environment_and_never_shown(tmp_path, source):
    with qdrant(tmp_path / "server", key="sesame-key") as server:
        target = target_of(server, "secret", source)
        with environment(QDRANT_API_KEY="wrong-secret"), pytest.raises(JobError) as wrong:
            target.published()
        with pytest.raises(JobError, match="without a key"):
            target.published()
        with environment(QDRANT_API_KEY="sesame-key"):
            _, record = build(target, source, "qdrant")
    assert "refused the key in QDRANT_API_KEY" in str(wrong.value)
    for text in (str(wrong.value), repr(target), record.encode().decode()):
        assert "wrong-secret" not in text
        assert "sesame-key" not in text


def test_old_server_is_refused(tmp_path, source):
    with (
        qdrant(tmp_path / "server", "--version", "1.9.2") as server,
        pytest.raises(JobError, match=r"is Qdrant 1\.9\.2: expected 1\.16 or later"),
    ):
        target_of(server, "old", source).check(source)
