"""The FAISS target: the files equal what plain FAISS writes, whatever the parts are."""

import multiprocessing
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.faults.faiss_build import SETTINGS, contents, run_stages
from tests.index_sources import ERRORS, ROWS, build, clustered, open_source, request_of, write_source
from varve.config.index import Index
from varve.errors import JobError, RunError
from varve.indexing.faiss.faiss_library import map_index, one_thread
from varve.indexing.faiss.faiss_target import FaissTarget
from varve.indexing.faiss.merged_file import write_lists
from varve.indexing.faiss.stored_vectors import map_vectors
from varve.indexing.metric import Metric
from varve.indexing.neighbours import nearest
from varve.indexing.open_target import find_index
from varve.indexing.row_check import check_rows

KINDS = (
    "Flat", "SQ8", "SQfp16", "HNSW16", "HNSW32,SQ8", "HNSW8,SQfp16", "IVF32,Flat", "IVF32,SQ8", "IVF32,SQfp16",
    "IVF32,PQ8x4", "IVF32,RaBitQ", "IVF32_HNSW32,SQ8",
)  # fmt: skip


@pytest.fixture
def source(tmp_path):
    return open_source(write_source(tmp_path / "run"))


@pytest.fixture
def target(tmp_path):
    """(kind) → target of an empty folder."""

    def make(kind: str, address: str | None = None, **settings) -> FaissTarget:
        address = address or str(tmp_path / kind.replace(",", "-"))
        return FaissTarget(address, Index(path="run", to=f"faiss:{address}", kind=kind, **settings))

    return make


def vectors_of(source) -> np.ndarray:
    found = np.concatenate([source.read(part).dense for part in range(source.num_parts)])
    return source.metric.prepare(found)


def stage(target: FaissTarget, source):
    """Build everything but the manifest; returns the kind."""
    kind = target.kinds(source)[0]
    target.begin(request_of(source, "faiss"))
    target.train(kind, source)
    for part in range(source.num_parts):
        target.add(kind, source, source.read(part))
    for piece in range(target.pieces(kind, source)):
        target.finish(kind, source, piece)
    return kind


def staged(target: FaissTarget, name: str) -> Path:
    return next(Path(target.destination).glob(f"_varve/staged/*/{name}"))


def read_index(path: Path):
    return faiss.read_index(str(path))


def recall(searcher, source, setting, queries: np.ndarray) -> float:
    exact = nearest(queries, vectors_of(source), 0, 10, source.metric)
    found = searcher.search(queries, 10, setting)
    return float(np.mean([np.isin(e, f).mean() for e, f in zip(exact.positions, found.positions, strict=True)]))


def test_flat_index_holds_every_vector_at_its_position(tmp_path, source, target):
    _, record = build(target("Flat"), source, "faiss")
    encoded = np.setdiff1d(np.arange(ROWS), ERRORS)
    expected = clustered(ROWS)[encoded]
    plain = read_index(tmp_path / "Flat/index.faiss")
    assert plain.reconstruct_n(0, plain.ntotal).tobytes() == expected.tobytes()
    positions = np.random.default_rng(0).permutation(len(encoded))
    with target("Flat").open(record) as searcher:
        assert searcher.dense_at(positions).tobytes() == expected[positions].tobytes()
        rows = searcher.rows(positions)
        assert searcher.search(expected, 1, {}).positions.ravel().tolist() == list(range(len(encoded)))
    second = encoded >= 400  # shard 1 is empty
    assert rows["shard"].to_pylist() == np.where(second, 2, 0)[positions].tolist()
    assert rows["row"].to_pylist() == np.where(second, encoded - 400, encoded)[positions].tolist()
    assert rows["doc_id"].to_pylist() == [f"doc-{row}" for row in encoded[positions]]


@pytest.mark.parametrize("metric", [Metric("cosine"), Metric("dot"), Metric("euclidean")], ids=lambda m: m.name)
@pytest.mark.parametrize("name", KINDS)
def test_file_equals_that_of_an_index_to_which_all_vectors_are_added_at_once(source, target, name, metric):
    source = replace(source, metric=metric)
    stage(target(name), source)
    with one_thread():
        plain = read_index(staged(target(name), "trained/index.faiss"))
        plain.add(vectors_of(source))
    assert staged(target(name), "finished/index.faiss").read_bytes() == faiss.serialize_index(plain).tobytes()


@pytest.mark.parametrize("metric", [Metric("cosine"), Metric("dot"), Metric("euclidean")], ids=lambda m: m.name)
@pytest.mark.parametrize("name", [name for name in KINDS if "RaBitQ" not in name])
def test_search_equals_that_of_the_plain_file(source, target, name, metric):
    source = replace(source, metric=metric)
    kind, queries = stage(target(name), source), 3 * clustered(20, seed=7)
    plain = read_index(staged(target(name), "finished/index.faiss"))
    for setting in kind.settings:
        if "efSearch" in setting:
            plain.hnsw.efSearch = setting["efSearch"]
        if "nprobe" in setting:
            plain.nprobe = setting["nprobe"]
        prepared = queries / np.linalg.norm(queries, axis=1, keepdims=True) if metric.name == "cosine" else queries
        scores, ids = plain.search(prepared, 10)
        with target(name).searcher(kind, source) as searcher:
            found = searcher.search(queries, 10, setting)
        assert np.allclose(found.scores, -scores if metric.name == "euclidean" else scores, rtol=1e-4, atol=1e-5)
        assert (np.sort(found.positions, axis=1) == np.sort(ids, axis=1)).mean() > 0.99


@pytest.mark.parametrize("name", ["HNSW4,SQ8", "IVF100,SQ8", "IVF600,RaBitQ"])
def test_recall_rises_with_the_setting(tmp_path, target, name):
    source = open_source(write_source(tmp_path / "large", rows=6000, rows_per_part=1500, shards=[6000]))
    kind = stage(target(name), source)
    with target(name).searcher(kind, source) as searcher:
        reached = [recall(searcher, source, setting, clustered(300, seed=5)) for setting in kind.settings]
    assert all(later >= earlier - 0.003 for earlier, later in pairwise(reached))
    assert reached[-1] > reached[0] + 0.02
    assert reached[-1] > 0.9


def test_short_codes_are_rescored_with_stored_vectors(tmp_path, source, target):
    _, record = build(target("IVF32,RaBitQ"), source, "faiss")
    stored = np.load(tmp_path / "IVF32-RaBitQ/vectors.npy", mmap_mode="r")
    assert stored.dtype == np.float16
    assert np.array_equal(stored, vectors_of(source).astype(np.float16))
    queries = clustered(200, seed=3)
    with target("IVF32,RaBitQ").open(record) as searcher:
        few = recall(searcher, source, {"nprobe": 32, "rescore": 1}, queries)
        many = recall(searcher, source, {"nprobe": 32, "rescore": 20}, queries)
        found = searcher.search(queries, 5, {"nprobe": 32, "rescore": 20})
    assert few < 0.8
    assert many > 0.95
    exact = np.einsum("qd,qkd->qk", queries, vectors_of(source)[found.positions])
    assert np.allclose(found.scores, exact, atol=2e-3)


def test_long_vectors_are_rescored_in_float32(tmp_path, source, target):
    build(target("IVF32,RaBitQ"), replace(source, metric=Metric("dot")), "faiss")
    assert np.load(tmp_path / "IVF32-RaBitQ/vectors.npy").dtype == np.float32


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_stored_dtypes_are_decoded(tmp_path, target, dtype):
    source = open_source(write_source(tmp_path / dtype, dtype=dtype))
    kind = stage(target("SQ8"), source)
    with target("SQ8").searcher(kind, source) as searcher:
        assert recall(searcher, source, {}, clustered(100, seed=1)) > 0.9
        check_rows(searcher, source)


def test_binary_vectors_are_refused_with_an_alternative(tmp_path, target):
    source = open_source(write_source(tmp_path / "binary", dtype="binary"))
    with pytest.raises(JobError, match=r"embedding has binary vectors.*--to npy:DEST"):
        target("Flat").check(source)


def test_missing_package_is_named_with_the_command(source, target, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(JobError, match=r"faiss-cpu .*pip install '\.\[faiss\]'"):
        target("Flat").check(source)


def test_published_index_is_found_without_importing_faiss(tmp_path, source, target):
    build(target("Flat"), source, "faiss")
    script = (
        "import sys; from varve.indexing.open_target import find_index; "
        f"print(find_index('faiss:{tmp_path}/Flat').record.kind, 'faiss' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["Flat", "False"]


def test_more_neighbours_than_vectors_are_filled_with_none(tmp_path, target):
    source = open_source(write_source(tmp_path / "small", rows=7, errors=(3,), shards=[7]))
    for name in ("Flat", "HNSW4", "IVF2,RaBitQ"):
        kind = stage(target(name), source)
        with target(name).searcher(kind, source) as searcher:
            found = searcher.search(clustered(3), 9, kind.settings[-1])
        assert sorted(found.positions[0, :6].tolist()) == list(range(6))
        assert found.positions[0, 6:].tolist() == [-1, -1, -1]
        assert np.isneginf(found.scores[0, 6:]).all()


def test_shards_of_a_graph_are_searched_together(tmp_path, source, target):
    kind, record = build(target("HNSW8", shards=3), source, "faiss")
    names = [f"index-{shard:05d}-of-00003.faiss" for shard in range(3)]
    assert sorted(path.name for path in (tmp_path / "HNSW8").glob("index*")) == names
    assert record.details == {"files": names, "first_positions": [0, 332, 664]}
    assert [read_index(tmp_path / "HNSW8" / name).ntotal for name in names] == [332, 332, 333]
    queries, setting = clustered(50, seed=2), kind.settings[-1]
    with target("HNSW8").open(record) as searcher:
        assert recall(searcher, source, setting, queries) > 0.99
        positions = np.arange(source.num_vectors)[::-1]
        assert searcher.dense_at(positions).tobytes() == vectors_of(source)[::-1].tobytes()
        check_rows(searcher, source)


def test_many_parts_are_merged_in_passes_to_the_same_file(tmp_path, source, target):
    stage(target("IVF32,SQ8"), source)
    parts = sorted(staged(target("IVF32,SQ8"), "parts").iterdir())
    counts = np.diff(source.starts)
    runs = [(path, int(counts[int(path.stem.split("-")[1])])) for path in parts]
    assert len(runs) > 4
    index = read_index(staged(target("IVF32,SQ8"), "trained/index.faiss"))
    write_lists(index, runs, tmp_path / "passes", max_runs=2, block_bytes=3000)
    assert (tmp_path / "passes").read_bytes() == staged(target("IVF32,SQ8"), "finished/index.faiss").read_bytes()


def test_empty_lists_are_written_as_faiss_writes_them(source, target):
    kind, rows = target("IVF32,SQ8").kinds(source)[0], source.read(0)
    target("IVF32,SQ8").train(kind, source)
    rows = replace(rows, vectors=np.tile(rows.dense[:3], (len(rows), 1))[: len(rows)])
    single = replace(source, starts=np.array([0, len(rows)]))
    target("IVF32,SQ8").add(kind, single, rows)
    target("IVF32,SQ8").finish(kind, single, 0)
    with one_thread():
        plain = read_index(staged(target("IVF32,SQ8"), "trained/index.faiss"))
        plain.add(rows.dense)
    assert staged(target("IVF32,SQ8"), "finished/index.faiss").read_bytes() == faiss.serialize_index(plain).tobytes()


def test_interrupted_staging_continues_with_the_missing_parts(tmp_path, source, target):
    build(target("IVF32,RaBitQ"), source, "faiss")
    again = target("IVF32,RaBitQ", str(tmp_path / "again"))
    kind = again.kinds(source)[0]
    again.begin(request_of(source, "faiss"))
    again.train(kind, source)
    empty = set(np.flatnonzero(np.diff(source.starts) == 0).tolist())
    assert again.added(kind, source) == empty
    for part in range(4):
        again.add(kind, source, source.read(part))
    assert again.added(kind, source) == empty | {0, 1, 2, 3}
    staged(again, "parts/part-00000001.vectors").unlink()
    next((tmp_path / "again/ids").glob("ids-000000000000-*")).unlink()
    assert again.added(kind, source) == (empty | {2, 3}) - {0, 1}
    build(again, source, "faiss")
    assert contents(tmp_path / "again") == contents(tmp_path / "IVF32-RaBitQ")


def test_missing_and_damaged_parts_are_refused(source, target):
    kind = stage(target("IVF32,SQ8"), source)
    staged(target("IVF32,SQ8"), "finished/index.faiss").unlink()
    part = staged(target("IVF32,SQ8"), "parts/part-00000001.codes")
    part.write_bytes(part.read_bytes()[:-5])
    with pytest.raises(RunError, match=r"part-00000001.codes has .* expected"):
        target("IVF32,SQ8").finish(kind, source, 0)
    part.unlink()
    with pytest.raises(RunError, match=r"part-00000001.codes is missing"):
        target("IVF32,SQ8").finish(kind, source, 0)


def test_files_of_another_kind_are_not_published(tmp_path, source, target):
    for name, shards in (("HNSW8", 3), ("IVF32,RaBitQ", None), ("IVF32,SQ8", None)):
        stage(target(name, str(tmp_path / "index"), shards=shards), source)
    build(target("IVF32,SQ8", str(tmp_path / "index")), source, "faiss")
    build(target("IVF32,SQ8"), source, "faiss")
    assert contents(tmp_path / "index") == contents(tmp_path / "IVF32-SQ8")


@pytest.mark.parametrize("name", SETTINGS)
def test_two_builders_at_once_publish_one_index(tmp_path, source, name):
    run_stages(source.output.storage.uri, str(tmp_path / "alone"), name)
    context = multiprocessing.get_context("forkserver")
    arguments = (source.output.storage.uri, str(tmp_path / "index"), name)
    builders = [context.Process(target=run_stages, args=(*arguments, seed)) for seed in (1, 2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert [builder.exitcode for builder in builders] == [0, 0]
    FaissTarget(str(tmp_path / "index")).clean(FaissTarget(str(tmp_path / "index")).published())
    assert contents(tmp_path / "index") == contents(tmp_path / "alone")


@pytest.mark.parametrize("server", ["moto", "radosgw"])
def test_index_in_an_object_store_has_the_same_bytes(tmp_path, source, target, container, server):
    bucket = container(server)
    for name, shards in (("Flat", None), ("HNSW8,SQ8", 2), ("IVF32,RaBitQ", None)):
        stored, local = target(name, f"{bucket}/{name}", shards=shards), target(name, shards=shards)
        _, record = build(stored, source, "faiss")
        build(local, source, "faiss")
        storage = stored._folder.storage  # noqa: SLF001
        found = {entry.name: storage.read(entry.name) for entry in storage.list("")}
        assert found == contents(Path(local.destination))
        assert stored.verify(record) == []
        with stored.open(record) as remote, local.open(record) as near:
            queries = clustered(5, seed=1)
            same = [each.search(queries, 5, record.setting).positions for each in (remote, near)]
            assert np.array_equal(*same)


def test_published_index_is_verified_and_searched_by_its_address(tmp_path, source, target):
    _, record = build(target("IVF32,SQ8"), source, "faiss")
    found = find_index(str(tmp_path / "IVF32-SQ8"))
    assert found is not None
    assert found.record == record
    with found.open() as searcher:
        nearest_rows = searcher.search(vectors_of(source)[:50], 1, record.setting).positions.ravel()
        assert (nearest_rows == np.arange(50)).mean() > 0.9
    assert found.target.verify(record) == []
    path = tmp_path / "IVF32-SQ8/index.faiss"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    assert "index.faiss: sha256 is" in found.target.verify(record)[0]
    path.write_bytes(b"no index".ljust(len(content)))
    with pytest.raises(RunError, match="not an index that FAISS can read"), found.open():
        pass


@pytest.mark.parametrize("num_bytes", [0, 100, -1])
@pytest.mark.parametrize("name", ["index.faiss", "vectors.npy"])
def test_file_that_was_cut_short_is_not_opened(tmp_path, source, target, name, num_bytes):
    build(target("IVF32,RaBitQ"), source, "faiss")
    path = tmp_path / "IVF32-RaBitQ" / name
    path.write_bytes(path.read_bytes()[:num_bytes])
    found = find_index(str(path.parent))
    assert found is not None
    with pytest.raises(RunError, match=rf"{name} is damaged: it has [\d,]+ bytes, and its manifest says"), found.open():
        pass


@pytest.mark.parametrize("value", [-1, 0, 2**31 - 1, 2**64])
@pytest.mark.parametrize(
    ("name", "setting"), [("HNSW16", "efSearch"), ("IVF32,SQ8", "nprobe"), ("IVF32,RaBitQ", "rescore")]
)
def test_any_setting_of_a_manifest_is_searched_in_bounded_memory(source, target, name, setting, value):
    index = target(name)
    _, record = build(index, source, "faiss")
    with index.open(record) as searcher:
        found = searcher.search(vectors_of(source)[:3], 5, dict(record.setting) | {setting: value})
    assert (found.positions < source.num_vectors).all()


def test_setting_of_another_kind_is_refused(source, target):
    index = target("IVF32,Flat")
    _, record = build(index, source, "faiss")
    with index.open(record) as searcher, pytest.raises(RunError, match="cannot be searched"):
        searcher.search(vectors_of(source)[:3], 5, {"efSearch": 3})


def test_length_in_a_file_that_is_larger_than_the_memory_is_refused(tmp_path):
    """The number of levels of an HNSW graph, as found by a changed file."""
    graph = faiss.IndexHNSWFlat(4, 4)
    graph.add(np.zeros((3, 4), np.float32))
    content = bytearray(faiss.serialize_index(graph).tobytes())
    at = content.index(np.array([3], "<u8").tobytes(), 60)  # the length of a vector of three
    content[at : at + 8] = np.array([2**39], "<u8").tobytes()
    (tmp_path / "index").write_bytes(content)
    with pytest.raises(RunError, match="not an index that FAISS can read"):
        map_index(tmp_path / "index", lists=False)


def test_damaged_header_of_stored_vectors_is_refused(tmp_path):
    np.save(tmp_path / "vectors.npy", np.zeros((3, 4), np.float32))
    content = bytearray((tmp_path / "vectors.npy").read_bytes())
    content[content.index(b"{")] = ord("(")
    (tmp_path / "vectors.npy").write_bytes(content)
    with pytest.raises(RunError, match="not an array that NumPy can read"):
        map_vectors(tmp_path / "vectors.npy")


def test_ids_are_readable_without_varve(tmp_path, source, target):
    build(target("Flat"), source, "faiss")
    files = sorted((tmp_path / "Flat/ids").iterdir())
    ids = pa.concat_tables([pq.read_table(file) for file in files])
    assert ids["position"].to_pylist() == list(range(source.num_vectors))


def test_number_of_threads_is_restored(source, target):
    faiss.omp_set_num_threads(3)
    build(target("IVF32,SQ8"), source, "faiss")
    assert faiss.omp_get_max_threads() == 3
    faiss.omp_set_num_threads(1)
    with one_thread():
        assert faiss.omp_get_max_threads() == 1


def test_vectors_that_are_not_finite_are_refused(source, target):
    kind = target("IVF32,SQ8").kinds(source)[0]
    target("IVF32,SQ8").train(kind, source)
    rows = source.read(1)
    rows = replace(rows, vectors=np.where(np.arange(len(rows))[:, None] == 7, np.float32("nan"), rows.dense))
    with pytest.raises(RunError, match=f"position {rows.first + 7} has values that are not finite"):
        target("IVF32,SQ8").add(kind, source, rows)
