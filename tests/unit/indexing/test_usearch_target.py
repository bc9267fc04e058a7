"""USearch graphs: keys are positions, the recall is high, several graphs answer as one."""

import numpy as np
import pytest

from tests.index_sources import build, clustered, open_source, request_of, write_source
from tests.outputs import column, write_output
from varve.config.index import Index
from varve.errors import JobError, RunError
from varve.indexing.neighbours import nearest
from varve.indexing.open_target import find_index
from varve.indexing.target import Kind
from varve.indexing.usearch.usearch_kind import EXPANSION
from varve.indexing.usearch.usearch_target import UsearchTarget


def target_of(tmp_path, **settings) -> UsearchTarget:
    index = Index(path=str(tmp_path / "run"), to=f"usearch:{tmp_path}/index", **settings)
    return UsearchTarget(index.destination, index)


def decoded(source) -> np.ndarray:
    return np.concatenate([source.read(part).dense for part in range(source.num_parts)])


def kind_of(target, source, name) -> Kind:
    return next(kind for kind in target.kinds(source) if kind.name == name)


def recall(searcher, source, setting) -> float:
    queries = clustered(100, seed=9)
    exact = nearest(queries, decoded(source), 0, 10, source.metric)
    found = searcher.search(queries, 10, setting)
    pairs = zip(found.positions, exact.positions, strict=True)
    return float(np.mean([len({*one} & {*other}) for one, other in pairs])) / 10


@pytest.mark.parametrize("shards", [None, 3])
@pytest.mark.parametrize(("name", "least"), [("f32", 0.99), ("f16", 0.98), ("i8", 0.85)])
def test_graphs_find_the_nearest_positions(tmp_path, name, least, shards):
    source = open_source(write_source(tmp_path / "run"))
    target = target_of(tmp_path, kind=name, shards=shards)
    kind, record = build(target, source, "usearch")
    graphs = [file for file in record.files if file.endswith(".usearch")]
    assert graphs == (
        ["index.usearch"] if shards is None else [f"index-{number:05d}-of-00003.usearch" for number in range(3)]
    )
    with target.open(record) as searcher:
        assert recall(searcher, source, kind.settings[-1]) >= least


def test_higher_expansion_finds_more(tmp_path):
    source = open_source(write_source(tmp_path / "run", rows=4000, shards=[4000], rows_per_part=1000))
    target = target_of(tmp_path, kind="f32")
    kind, record = build(target, source, "usearch")
    with target.open(record) as searcher:
        curve = [recall(searcher, source, setting) for setting in (kind.settings[0], kind.settings[-1])]
    assert curve[0] < curve[1]


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_declared_similarities_keep_the_lengths_of_vectors(tmp_path, similarity):
    vectors = clustered(600) * np.linspace(0.5, 3, 600, dtype=np.float32)[:, None]
    definition = column("embedding", 32, pool="declared", layer=12)
    path = write_output(tmp_path / "run", {definition: vectors}, {"title": ["a"] * 600}, similarity=similarity)
    source, target = open_source(path, ()), target_of(tmp_path)
    assert [kind.name for kind in target.kinds(source)] == ["f16", "f32"]
    kind, record = build(target, source, "usearch", kind_of(target, source, "f32"))
    exact = nearest(vectors[:20], vectors, 0, 5, source.metric)
    with target.open(record) as searcher:
        found = searcher.search(vectors[:20], 5, kind.settings[-1])
    assert np.array_equal(found.positions, exact.positions)
    assert np.allclose(found.scores, exact.scores, atol=1e-4)


def test_vectors_of_other_lengths_are_compared_by_cosine(tmp_path):
    vectors = clustered(400) * np.linspace(0.5, 3, 400, dtype=np.float32)[:, None]
    definition = column("embedding", 32, pool="mean", layer=12)
    path = write_output(tmp_path / "run", {definition: vectors}, {"title": ["a"] * 400})
    source, target = open_source(path, ()), target_of(tmp_path, kind="f32")
    kind, record = build(target, source, "usearch")
    with target.open(record) as searcher:
        found = searcher.search(vectors[:50] * 7, 1, kind.settings[-1])
        assert np.array_equal(searcher.dense_at(np.arange(400)), vectors)
    assert np.array_equal(found.positions[:, 0], np.arange(50))
    assert np.allclose(found.scores, 1, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "name", "exact"),
    [("float32", "f32", True), ("float16", "f32", True), ("float16", "f16", True), ("int8", "f32", True),
     ("float32", "f16", False), ("float32", "i8", False)],
)  # fmt: skip
@pytest.mark.parametrize("shards", [1, 4])
def test_rows_and_vectors_of_positions_are_those_of_the_output(tmp_path, dtype, name, exact, shards):
    source = open_source(write_source(tmp_path / "run", dtype=dtype))
    target = target_of(tmp_path, kind=name, shards=shards)
    _, record = build(target, source, "usearch")
    order = np.random.default_rng(0).permutation(source.num_vectors)
    with target.open(record) as searcher:
        rows, vectors = searcher.rows(order), searcher.dense_at(order)
    assert rows["position"].to_pylist() == order.tolist()
    assert rows["title"].to_pylist() == [f"Title {doc[4:]} “é”" for doc in rows["doc_id"].to_pylist()]
    assert np.array_equal(vectors, decoded(source)[order]) if exact else vectors is None


def test_file_has_the_size_of_the_formula(tmp_path):
    source = open_source(write_source(tmp_path / "run", rows=4000, shards=[4000], rows_per_part=1000))
    for name in ("f32", "f16", "i8"):
        target = UsearchTarget(str(tmp_path / name), None)
        kind, record = build(target, source, "usearch", kind_of(target, source, name))
        assert record.files["index.usearch"]["bytes"] / source.num_vectors == pytest.approx(
            kind.bytes_per_vector, rel=0.01
        )


def test_graphs_of_two_builds_have_the_same_bytes(tmp_path):
    source = open_source(write_source(tmp_path / "run"))
    for copy in ("one", "two"):
        target = UsearchTarget(str(tmp_path / copy), None)
        build(target, source, "usearch", kind_of(target, source, "f16"))
    one, two = ((tmp_path / copy / "index.usearch").read_bytes() for copy in ("one", "two"))
    assert one == two


def test_kinds_that_were_not_published_are_removed(tmp_path):
    source, target = open_source(write_source(tmp_path / "run")), target_of(tmp_path)
    i8, f16, _ = target.kinds(source)
    target.begin(request_of(source, "usearch"))
    for part in range(source.num_parts):
        target.add(i8, source, source.read(part))
    target.finish(i8, source, 0)
    with target.searcher(i8, source) as searcher:
        assert searcher.search(clustered(1), 1, {}).positions[0, 0] >= 0
    assert target.published() is None
    build(target, source, "usearch", f16)
    left = {path.relative_to(tmp_path / "index").parts[0] for path in (tmp_path / "index").rglob("*.*")}
    assert left == {"_varve", "ids", "index.usearch"}
    assert sorted(path.name for path in (tmp_path / "index/_varve").rglob("*.*")) == ["index.json", "manifest.json"]
    build(UsearchTarget(str(tmp_path / "f16"), None), source, "usearch", f16)
    one, two = ((tmp_path / copy / "index.usearch").read_bytes() for copy in ("index", "f16"))
    assert one == two


def test_second_build_finds_the_published_index(tmp_path):
    source, target = open_source(write_source(tmp_path / "run")), target_of(tmp_path, kind="f32")
    kind, record = build(target, source, "usearch")
    assert target.published() == record
    assert target.added(kind, source) == {*range(source.num_parts)}
    found = find_index(str(tmp_path / "index"))
    assert found is not None
    assert found.record == record
    assert build(target, source, "usearch")[1] == record


def test_fewer_vectors_than_neighbours_are_filled_with_none(tmp_path):
    source = open_source(write_source(tmp_path / "run", rows=500, errors=(), shards=[500]))
    target = target_of(tmp_path, kind="f32", shards=3)
    _, record = build(target, source, "usearch")
    with target.open(record) as searcher:
        found = searcher.search(clustered(2, seed=9), 600, {"expansion_search": 16})
    assert sorted(found.positions[0, :500]) == list(range(500))
    assert (found.positions[:, 500:] == -1).all()


def test_binary_vectors_are_refused(tmp_path):
    with pytest.raises(JobError, match="embedding is binary"):
        target_of(tmp_path).check(open_source(write_source(tmp_path / "run", dtype="binary")))


@pytest.mark.parametrize("kind", ["HNSW32", "b1"])
def test_unknown_kind_is_refused(tmp_path, kind):
    source = open_source(write_source(tmp_path / "run"))
    with pytest.raises(JobError, match=f"'{kind}' is not allowed.*auto or one of i8, f16, f32"):
        target_of(tmp_path, kind=kind).kinds(source)


def test_missing_package_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr("varve.indexing.usearch.usearch_target.find_spec", lambda _: None)
    with pytest.raises(JobError, match="pip install"):
        target_of(tmp_path).check(open_source(write_source(tmp_path / "run")))


@pytest.mark.parametrize("content", [b"", b"not a graph" * 100])
def test_damaged_file_is_reported(tmp_path, content):
    source, target = open_source(write_source(tmp_path / "run")), target_of(tmp_path, kind="f32")
    _, record = build(target, source, "usearch")
    file = tmp_path / "index/index.usearch"
    whole = file.read_bytes()
    for damaged in (content, content.ljust(len(whole), b"x"), whole[: len(whole) // 2], whole + b"x"):
        file.write_bytes(damaged)
        assert len(target.verify(record)) == 1
        with pytest.raises(RunError, match=r"index\.usearch is damaged"), target.open(record):
            pass


@pytest.mark.parametrize("expansion", [-1, 0, 2**31, 2**64])
def test_any_setting_of_a_manifest_is_searched_in_bounded_memory(tmp_path, expansion):
    source, target = open_source(write_source(tmp_path / "run")), target_of(tmp_path, kind="f32")
    _, record = build(target, source, "usearch")
    with target.open(record) as searcher:
        least = recall(searcher, source, {EXPANSION: 1})
        assert recall(searcher, source, {EXPANSION: expansion}) >= (0.99 if expansion > 0 else least)


def test_vector_that_is_not_finite_is_reported(tmp_path):
    vectors = clustered(300)
    vectors[123, 4] = np.nan
    definition = column("embedding", 32, pool="mean", layer=12)
    path = write_output(tmp_path / "run", {definition: vectors}, {"title": ["a"] * 300}, similarity="dot")
    with pytest.raises(RunError, match="position 123 has values that are not finite"):
        build(target_of(tmp_path, kind="f32"), open_source(path, ()), "usearch")


def test_zero_vectors_do_not_disturb_the_others(tmp_path):
    vectors = clustered(300)
    vectors[100:110] = 0
    definition = column("embedding", 32, pool="mean", layer=12)
    path = write_output(tmp_path / "run", {definition: vectors}, {"title": ["a"] * 300})
    source, target = open_source(path, ()), target_of(tmp_path, kind="f32")
    kind, record = build(target, source, "usearch")
    with target.open(record) as searcher:
        found = searcher.search(vectors[:50], 1, kind.settings[-1])
        of_zero = searcher.search(np.zeros((1, 32), np.float32), 3, kind.settings[-1])
    assert np.array_equal(found.positions[:, 0], np.arange(50))
    assert np.isfinite(of_zero.scores).all()
