"""Builds of Lance datasets: rows, indexes, what LanceDB reads, and what a repeated build changes."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import pairwise
from threading import Barrier

import lance
import lancedb
import numpy as np
import pyarrow as pa
import pytest
from lancedb.query import LanceVectorQueryBuilder

from tests.index_sources import build, clustered, open_source, request_of, write_source
from tests.list_sources import write_late
from tests.outputs import column, write_output
from tests.servers.stores import empty_container
from varve.config.index import Index
from varve.encoder.ragged import Ragged
from varve.errors import JobError, RunError
from varve.indexing.lance import lance_kind
from varve.indexing.lance.lance_target import LanceTarget
from varve.indexing.lance.table import Table
from varve.indexing.neighbours import nearest
from varve.indexing.row_check import check_rows
from varve.indexing.rows import concatenate

ROWS = 3000
KINDS = ("exact", "IVF_SQ", "IVF_RQ", "IVF_PQ", "IVF_HNSW_SQ")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_source(write_source(tmp_path_factory.mktemp("source") / "run", ROWS))


def target_of(folder, source, **settings) -> LanceTarget:
    return LanceTarget(str(folder), Index(path=source.output.storage.uri, to=f"lance:{folder}", **settings))


def begun(folder, source, **settings) -> LanceTarget:
    """A target whose build has begun: other files in the folder are refused before, not later."""
    target = target_of(folder, source, **settings)
    target.begin(request_of(source, "lance"))
    return target


def recall(searcher, source, setting: dict, k: int = 10) -> float:
    queries = source.dense_at(np.arange(0, source.num_vectors, 30))
    exact = nearest(queries, source.dense_at(np.arange(source.num_vectors)), 0, k, source.metric).positions
    found = searcher.search(queries, k, setting).positions
    return float(np.mean([len({*f} & {*e}) for f, e in zip(found.tolist(), exact.tolist(), strict=True)])) / k


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def index_of(folder) -> list[tuple[str, int, int]]:
    """(name, rows that it covers, rows that it does not cover) of each index."""
    dataset = lance.dataset(str(folder / "docs.lance"))
    names = [index.name for index in dataset.describe_indices()]
    counts = [dataset.stats.index_stats(name) for name in names]
    return [(n, c["num_indexed_rows"], c["num_unindexed_rows"]) for n, c in zip(names, counts, strict=True)]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_build_holds_every_row_of_the_source_bit_for_bit(tmp_path, dtype):
    source = open_source(write_source(tmp_path / "run", ROWS, dtype=dtype))
    target = target_of(tmp_path / "index", source, kind="IVF_SQ")
    _, record = build(target, source, "lance")
    positions = np.random.default_rng(0).permutation(source.num_vectors)
    with target.open(record) as searcher:
        rows, vectors = searcher.rows(positions), searcher.dense_at(positions)
        check_rows(searcher, source)
    expected = pa.concat_tables([source.read(part).ids for part in range(source.num_parts)])
    assert rows.equals(expected.take(positions))
    assert vectors is not None
    assert vectors.tobytes() == source.dense_at(positions).tobytes()
    stored = lance.dataset(str(tmp_path / "index/docs.lance")).to_table(columns=["position", "vector"])
    assert stored["position"].to_pylist() == list(range(ROWS - 3))
    assert str(stored.schema.field("vector").type.value_type) == {"float32": "float", "float16": "halffloat"}[dtype]


@pytest.mark.parametrize("kind", KINDS[1:])
def test_index_covers_all_rows_and_its_recall_rises(tmp_path, source, kind):
    target = target_of(tmp_path / "index", source, kind=kind)
    chosen, record = build(target, source, "lance")
    assert index_of(tmp_path / "index") == [(f"vector_{kind.lower()}", source.num_vectors, 0)]
    with target.open(record) as searcher:
        found = [recall(searcher, source, setting) for setting in chosen.settings]
    assert found[-1] > 0.99
    assert found[0] <= found[-1]
    assert all(later >= earlier - 0.005 for earlier, later in pairwise(found))


def test_segments_are_built_apart_and_searched_together(tmp_path, source, monkeypatch):
    monkeypatch.setattr(lance_kind, "_ROWS_PER_SEGMENT", 1000)
    target = target_of(tmp_path / "index", source, kind="IVF_SQ")
    kind = target.kinds(source)[0]
    assert target.pieces(kind, source) == 3
    _, record = build(target, source, "lance")
    dataset = lance.dataset(str(tmp_path / "index/docs.lance"))
    (index,) = dataset.describe_indices()
    assert len(index.segments) == 3
    assert index.num_rows_indexed == source.num_vectors
    with target.open(record) as searcher:
        assert recall(searcher, source, kind.settings[-1]) > 0.99


def test_recall_is_the_same_before_and_after_publication(tmp_path, source):
    target = begun(tmp_path / "index", source, kind="IVF_RQ")
    kind = target.kinds(source)[0]
    for part in range(source.num_parts):
        target.add(kind, source, source.read(part))
    target.finish(kind, source, 0)
    with target.searcher(kind, source) as searcher:
        before = [recall(searcher, source, setting) for setting in kind.settings]
    assert target.published() is None
    _, record = build(target, source, "lance")
    with target.open(record) as searcher:
        assert [recall(searcher, source, setting) for setting in kind.settings] == before


def test_second_kind_replaces_the_index_of_the_first(tmp_path, source):
    target = begun(tmp_path / "index", source)
    first, second = (target_of(tmp_path / "index", source, kind=kind).kinds(source)[0] for kind in ("IVF_RQ", "IVF_SQ"))
    for part in range(source.num_parts):
        target.add(first, source, source.read(part))
    for kind in (first, second, first, second):  # a build may be killed and begin with the first kind again
        assert target.added(kind, source) == {*range(source.num_parts)}
        target.finish(kind, source, 0)
        with target.searcher(kind, source) as searcher:
            assert recall(searcher, source, kind.settings[-1]) > 0.97
        assert index_of(tmp_path / "index") == [(f"vector_{kind.name.lower()}", source.num_vectors, 0)]
    build(target, source, "lance", second)
    assert index_of(tmp_path / "index") == [("vector_ivf_sq", source.num_vectors, 0)]


def test_published_folder_holds_only_files_of_the_record(tmp_path, source):
    target = begun(tmp_path / "index", source, kind="IVF_SQ")
    kind = target.kinds(source)[0]
    target.add(kind, source, source.read(0))
    lance.fragment.write_fragments(pa.table({"x": [1]}), str(tmp_path / "index/docs.lance"), mode="create")
    _, record = build(target, source, "lance")
    found = set(contents(tmp_path / "index"))
    of_folder = {"_varve/manifest.json", "_varve/index.json", "docs.lance/_versions/latest_version_hint.json"}
    assert found - set(record.files) == of_folder
    assert target.verify(record) == []


def test_second_build_changes_nothing(tmp_path, source):
    target = target_of(tmp_path / "index", source, kind="IVF_SQ")
    _, record = build(target, source, "lance")
    before = contents(tmp_path / "index")
    assert target.published() == record
    target.publish(target.kinds(source)[0], source, record)
    target.clean(record)
    assert contents(tmp_path / "index") == before


def test_published_record_is_read_without_importing_lance(tmp_path, source):
    build(target_of(tmp_path / "index", source), source, "lance")
    code = (
        "import sys; from varve.indexing.lance.lance_target import LanceTarget; "
        f"assert LanceTarget({str(tmp_path / 'index')!r}, None).published(); assert 'lance' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_lancedb_searches_the_table_and_returns_the_kept_columns(tmp_path, source):
    build(target_of(tmp_path / "index", source, kind="IVF_SQ"), source, "lance")
    table = lancedb.connect(tmp_path / "index").open_table("docs")
    query = source.dense_at(np.array([123]))[0]
    search = table.search(query, query_type="vector", vector_column_name="vector")
    assert isinstance(search, LanceVectorQueryBuilder)
    found = search.distance_type("dot").nprobes(8).refine_factor(4).limit(3).to_list()
    row = source.output.read(source.output.manifest.parts[0], ["doc_id"])["doc_id"][124].as_py()  # row 3 has an error
    assert (found[0]["position"], found[0]["doc_id"]) == (123, row)
    assert table.count_rows() == source.num_vectors


def test_index_that_does_not_cover_all_rows_is_not_published(tmp_path, source):
    target = begun(tmp_path / "index", source, kind="IVF_SQ")
    kind = target.kinds(source)[0]
    for part in range(source.num_parts):
        target.add(kind, source, source.read(part))
    target.finish(kind, source, 0)
    segment = tmp_path / "index/_varve/staged/IVF_SQ/segment-00000.json"
    content = json.loads(segment.read_text())
    segment.write_text(json.dumps({**content, "fragment_ids": content["fragment_ids"][:2]}))
    with pytest.raises(RunError, match=r"covers 299 of 2,997 vectors"):
        build(target, source, "lance")
    assert target.published() is None


def test_dataset_of_other_rows_is_refused(tmp_path, source):
    target = begun(tmp_path / "index", source)
    lance.write_dataset(pa.table({"x": [1, 2]}), str(tmp_path / "index/docs.lance"))
    with pytest.raises(RunError, match="has 2 rows, expected 2,997"):
        build(target, source, "lance")


def test_missing_part_is_named(tmp_path, source):
    target = target_of(tmp_path / "index", source)
    kind = target.kinds(source)[0]
    target.add(kind, source, source.read(0))
    with pytest.raises(RunError, match=r"000000000149\.json is missing: a part was not added"):
        target.finish(kind, source, 0)


def test_verify_finds_a_damaged_and_a_missing_file(tmp_path, source):
    target = target_of(tmp_path / "index", source)
    _, record = build(target, source, "lance")
    one, other, *_ = sorted((tmp_path / "index/docs.lance/data").iterdir())
    content = bytearray(one.read_bytes())
    content[100] ^= 1
    one.write_bytes(content)
    other.unlink()
    failures = target.verify(record)
    assert len(failures) == 2
    assert any(one.name in line and "sha256" in line for line in failures)
    assert any(other.name in line and "missing" in line for line in failures)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_late_feature_is_found_by_maxsim(tmp_path, dtype):
    source = open_source(write_late(tmp_path / "run", rows=300, dtype=dtype), ("id",))
    target = target_of(tmp_path / "index", source)
    kind, record = build(target, source, "lance")
    assert kind.name == "exact"
    vectors = concatenate([source.read(part).vectors for part in range(source.num_parts)])
    assert isinstance(vectors, Ragged)
    queries = source.at(np.flatnonzero(np.diff(vectors.offsets))[:20])
    exact = nearest(queries, vectors, 0, 5, source.metric)
    with target.open(record) as searcher:
        found = searcher.search(queries, 5, {})
        stored = searcher.late_at(np.arange(source.num_vectors))
        check_rows(searcher, source)
    assert np.allclose(found.scores, exact.scores, atol=5e-3 if dtype == "float16" else 1e-5)
    assert np.array_equal(stored.offsets, vectors.offsets)
    assert stored.values.tobytes() == vectors.values.astype(np.float32).tobytes()


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("kind", ["exact", "IVF_SQ"])
def test_metrics_rank_as_the_exact_search_does(tmp_path, similarity, kind):
    vectors = clustered(2000, 16) * np.linspace(0.5, 3, 2000, dtype=np.float32)[:, None]
    feature = column("embedding", 16, pool="declared", layer=12)
    path = write_output(tmp_path / "run", {feature: vectors}, {"id": np.arange(2000)}, similarity=similarity)
    source = open_source(path, ("id",))
    target = target_of(tmp_path / "index", source, kind=kind)
    chosen, record = build(target, source, "lance")
    queries = vectors[::100]
    exact = nearest(queries, vectors, 0, 10, source.metric)
    with target.open(record) as searcher:
        found = searcher.search(queries, 10, chosen.settings[-1])
        check_rows(searcher, source)
    assert np.allclose(found.scores, exact.scores, rtol=1e-3, atol=1e-4)
    assert np.mean(found.positions == exact.positions) > 0.97


def test_unknown_and_unsuitable_kinds_are_refused(tmp_path, source):
    with pytest.raises(JobError, match="'HNSW32' does not exist in Lance: expected auto, exact, IVF_SQ"):
        target_of(tmp_path, source, kind="HNSW32").kinds(source)
    late = open_source(write_late(tmp_path / "late", rows=40), ())
    with pytest.raises(JobError, match="Lance compares it exactly"):
        target_of(tmp_path, late, kind="IVF_PQ").kinds(late)


def test_kept_column_with_a_name_of_lance_is_refused(tmp_path):
    feature = column("embedding", 8, pool="mean", layer=12, normalize=True)
    path = write_output(tmp_path / "run", {feature: clustered(20, 8)}, {"vector": np.arange(20)})
    source = open_source(path, ("vector",))
    with pytest.raises(JobError, match="--keep vector"):
        target_of(tmp_path / "index", source).check(source)


def test_part_that_another_process_has_added_and_committed_may_be_added_again(tmp_path, source):
    target = target_of(tmp_path / "index", source)
    kind, record = build(target, source, "lance")
    target.add(kind, source, source.read(1))
    with target.open(record) as searcher:
        check_rows(searcher, source)
        assert searcher.dataset.count_rows() == source.num_vectors


def test_build_and_search_write_nothing_to_stderr(tmp_path, source, capfd):
    target = target_of(tmp_path / "index", source, kind="IVF_SQ")
    kind, record = build(target, source, "lance")
    with target.open(record) as searcher:
        recall(searcher, source, kind.settings[0])
    assert capfd.readouterr().err == ""


def test_dataset_in_an_object_store_is_built_and_searched(tmp_path, source, container):
    address = f"{container('moto')}/index"
    target = target_of(address, source, kind="IVF_SQ")
    kind, record = build(target, source, "lance")
    assert target.published() == record
    assert target.verify(record) == []
    with target.open(record) as searcher:
        assert recall(searcher, source, kind.settings[-1]) > 0.99
        check_rows(searcher, source)
    assert "SKTEST" not in repr(target) + record.encode().decode()
    table = lancedb.connect(address, storage_options={"allow_http": "true"}).open_table("docs")
    assert table.count_rows() == source.num_vectors


def test_build_survives_a_failing_object_store(tmp_path, servers, faulty, monkeypatch):
    control = faulty("moto")
    address = f"{empty_container(servers, monkeypatch, 'moto', control.endpoint)}/index"
    control.faults(slow_down=0.15, reset=0.08, lost=0.1, seed=1)
    source = open_source(write_source(tmp_path / "run", 700))
    target = target_of(address, source, kind="IVF_SQ")
    _, record = build(target, source, "lance")
    control.faults()
    assert target.verify(record) == []
    with target.open(record) as searcher:
        check_rows(searcher, source)
        assert searcher.dataset.count_rows() == source.num_vectors


def test_older_versions_are_removed_before_publication(tmp_path, source):
    build(target_of(tmp_path / "index", source, kind="IVF_SQ"), source, "lance")
    dataset = lance.dataset(str(tmp_path / "index/docs.lance"))
    assert len(dataset.versions()) == 1
    assert dataset.cleanup_old_versions(older_than=timedelta(0), delete_unverified=True).bytes_removed == 0


def test_two_builders_that_commit_an_index_at_once_end_with_one(tmp_path, monkeypatch):
    """The commit of the second one conflicts with that of the first one, which has the same segments."""
    table, barrier = Table(str(tmp_path / "docs.lance")), Barrier(2)
    rows = pa.table({"vector": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(4096) % 97, pa.float32()), 8)})
    table.create(rows.schema, table.write_fragments(rows))
    options = {"metric": "l2", "num_partitions": 2}
    segment = table.build_segment("vector_ivf_flat", "IVF_FLAT", options, [0])
    opened, waiting = Table.require, [True, True]

    def open_together(self):
        dataset = opened(self)
        if waiting and not dataset.describe_indices():
            waiting.pop()
            barrier.wait(30)
        return dataset

    monkeypatch.setattr(Table, "drop_indices", lambda _: None)
    monkeypatch.setattr(
        Table,
        "indexed_rows",
        lambda self, index: sum(
            each.num_rows_indexed for each in lance.dataset(self.uri).describe_indices() if each.name == index
        ),
    )
    monkeypatch.setattr(Table, "require", open_together)
    with ThreadPoolExecutor(2) as builders:
        for commit in [builders.submit(table.commit_index, "vector_ivf_flat", [segment], 512) for _ in range(2)]:
            commit.result()
    assert index_of(tmp_path) == [("vector_ivf_flat", 512, 0)]


def test_lance_version_that_cannot_be_read_ends_the_cleaning_with_the_reason(tmp_path, source):
    """The error of Lance is that of a listing which a store broke off."""
    build(target_of(tmp_path / "index", source, kind="exact"), source, "lance")
    (latest,) = tmp_path.rglob("_versions/*.manifest")
    latest.with_name(f"{int(latest.stem) + 1:020}.manifest").write_bytes(b"damaged")  # the version before
    with pytest.raises(RunError, match=r"docs.lance cannot be cleaned: "):
        Table(str(tmp_path / "index/docs.lance")).remove_unused_files()
