"""npy and fbin: every row bit-equal to the output, in files that NumPy and others read without Varve."""

import pickle
import struct

import numpy as np
import pyarrow as pa
import pytest

from tests.index_sources import ERRORS, ROWS, build, clustered, open_source, write_source
from tests.outputs import column, write_output
from varve.config.index import Index
from varve.errors import JobError, RunError
from varve.indexing.arrays.array_target import ArrayTarget
from varve.indexing.metric import Metric
from varve.indexing.neighbours import nearest
from varve.indexing.open_target import find_index
from varve.output.run_output import Output

DTYPES = ("float32", "float16", "int8", "binary")
FILE_BYTES = 20_000


def decoded(source) -> np.ndarray:
    """All vectors of the source in the order of their positions."""
    return np.concatenate([source.read(part).dense for part in range(source.num_parts)])


def stored_cells(path: str) -> np.ndarray:
    """(N, bytes) the values of the vectors as the Parquet files hold them."""
    output = Output.open(path)
    cells = [output.read(part, ["embedding"])["embedding"].drop_null() for part in output.manifest.parts]
    arrays = [cell.combine_chunks().flatten().to_numpy(zero_copy_only=False) for cell in cells]
    rows = sum(len(cell) for cell in cells)
    return np.concatenate(arrays).reshape(rows, -1)


@pytest.fixture(params=DTYPES)
def source_path(request, tmp_path):
    return request.param, write_source(tmp_path / "run", dtype=request.param)


def test_npy_files_hold_every_row_of_the_output(tmp_path, source_path):
    dtype, path = source_path
    source, target = open_source(path), ArrayTarget(str(tmp_path / "index"), None, "npy", FILE_BYTES)
    _, record = build(target, source, "npy")
    names = [name for name in record.files if name.endswith(".npy")]
    files = [np.load(tmp_path / "index" / name, mmap_mode="r") for name in names]
    assert len(names) > 1 or dtype == "binary"
    assert all((tmp_path / "index" / name).stat().st_size <= FILE_BYTES for name in names)
    assert {file.dtype.name for file in files} == {{"int8": "float32", "binary": "uint8"}.get(dtype, dtype)}
    rows = np.concatenate(files)
    assert len(rows) == 1000 - len(ERRORS)
    expected = decoded(source) if dtype == "int8" else stored_cells(path)
    assert rows.tobytes() == expected.tobytes()


def test_fbin_file_holds_every_row_behind_its_shape(tmp_path, source_path):
    dtype, path = source_path
    source, target = open_source(path), ArrayTarget(str(tmp_path / "index"), None, "fbin")
    build(target, source, "fbin")
    name = "vectors.u8bin" if dtype == "binary" else "vectors.fbin"
    content = (tmp_path / "index" / name).read_bytes()
    width = 4 if dtype == "binary" else 32
    assert struct.unpack("<II", content[:8]) == (1000 - len(ERRORS), width)
    expected = stored_cells(path) if dtype == "binary" else decoded(source)
    assert content[8:] == expected.tobytes()


@pytest.mark.parametrize("name", ["npy", "fbin"])
def test_rows_of_the_positions_are_those_of_the_output(tmp_path, source_path, name):
    _, path = source_path
    source, target = open_source(path), ArrayTarget(str(tmp_path / "index"), None, name, FILE_BYTES)
    _, record = build(target, source, name)
    order = np.random.default_rng(0).permutation(source.num_vectors)
    expected = pa.concat_tables([source.read(part).ids for part in range(source.num_parts)])
    with target.open(record) as searcher:
        assert searcher.rows(np.arange(source.num_vectors)).equals(expected)
        assert searcher.rows(order).equals(expected.take(pa.array(order)))
        assert np.array_equal(searcher.dense_at(order), decoded(source)[order])
        assert searcher.rows(np.zeros(0, np.int64)).num_rows == 0
    shards = expected["shard"].to_numpy()
    assert set(shards) == {0, 2}  # shard 1 is empty
    assert not {(0, row) for row in ERRORS[:1]} & set(zip(shards, expected["row"].to_pylist(), strict=True))


@pytest.mark.parametrize("name", ["npy", "fbin"])
def test_neighbours_are_those_of_a_full_sort(tmp_path, source_path, name):
    _, path = source_path
    source, target = open_source(path), ArrayTarget(str(tmp_path / "index"), None, name, FILE_BYTES)
    _, record = build(target, source, name)
    vectors, queries = decoded(source), clustered(20, seed=9)
    if not source.metric.unit:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = (queries.astype(float) @ vectors.T.astype(float)).astype(np.float32)
    expected = np.lexsort((np.broadcast_to(np.arange(len(vectors)), scores.shape), -scores), axis=1)[:, :10]
    with target.open(record) as searcher:
        found = searcher.search(queries, 10, {})
    assert np.allclose(found.scores, np.take_along_axis(scores, expected, axis=1), atol=1e-6)
    assert (found.positions == expected).mean() > 0.99  # the others are nearly ties


def test_results_equal_those_from_the_parquet_files(tmp_path):
    source = open_source(write_source(tmp_path / "run"))
    target = ArrayTarget(str(tmp_path / "index"), None, "npy", FILE_BYTES)
    _, record = build(target, source, "npy")
    queries = clustered(20, seed=9)
    expected = nearest(queries, decoded(source), 0, 10, source.metric)
    with target.open(record) as searcher:
        found = searcher.search(queries, 10, {})
    assert np.array_equal(found.positions, expected.positions)
    assert np.array_equal(found.scores, expected.scores)


def test_more_neighbours_than_vectors_are_filled_with_none(tmp_path):
    source = open_source(write_source(tmp_path / "run", rows=500, errors=(), shards=[500]))
    target = ArrayTarget(str(tmp_path / "index"), None, "npy")
    _, record = build(target, source, "npy")
    with target.open(record) as searcher:
        found = searcher.search(clustered(2, seed=9), 600, {})
    assert (found.positions[:, 500:] == -1).all()
    assert sorted(found.positions[0, :500]) == list(range(500))


def test_windows_are_rows_with_their_numbers(tmp_path):
    definition = column("embedding", 32, pool="mean", layer=12, form="windows")
    path = write_output(tmp_path / "run", {definition: clustered(300)}, {"title": [str(row) for row in range(300)]})
    source, target = open_source(path, ("title",)), ArrayTarget(str(tmp_path / "index"), None, "npy")
    _, record = build(target, source, "npy")
    with target.open(record) as searcher:
        assert searcher.rows(np.array([7])).to_pylist() == [
            {"position": 7, "shard": 0, "row": 7, "item": 0, "title": "7"}
        ]


def test_second_build_finds_the_published_index(tmp_path):
    source = open_source(write_source(tmp_path / "run"))
    target = ArrayTarget(str(tmp_path / "index"), None, "npy", FILE_BYTES)
    kind, record = build(target, source, "npy")
    changed = {path: path.stat().st_mtime_ns for path in (tmp_path / "index").rglob("*.*")}
    assert target.published() == record
    assert target.added(kind, source) == {*range(source.num_parts)}
    build(target, source, "npy")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "index").rglob("*.*")} == changed


def test_files_of_two_builds_are_equal(tmp_path, source_path):
    _, path = source_path
    for copy in ("one", "two"):
        build(ArrayTarget(str(tmp_path / copy), None, "npy", FILE_BYTES), open_source(path), "npy")
    one, two = (
        {file.relative_to(tmp_path / copy): file.read_bytes() for file in (tmp_path / copy).rglob("*.*")}
        for copy in ("one", "two")
    )
    assert one == two


def test_folder_is_found_by_its_address(tmp_path):
    source = open_source(write_source(tmp_path / "run"))
    _, record = build(ArrayTarget(str(tmp_path / "index"), None, "fbin"), source, "fbin")
    for address in (str(tmp_path / "index"), f"fbin:{tmp_path}/index"):
        found = find_index(address)
        assert found is not None
        assert found.record == record
        with found.open() as searcher:
            assert searcher.search(clustered(ROWS)[:1], 1, {}).positions[0, 0] == 0


def test_damaged_and_missing_files_are_reported(tmp_path):
    source = open_source(write_source(tmp_path / "run"))
    target = ArrayTarget(str(tmp_path / "index"), None, "npy", FILE_BYTES)
    _, record = build(target, source, "npy")
    assert target.verify(record) == []
    first, second, third = sorted((tmp_path / "index").glob("*.npy"))[:3]
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(content)
    second.write_bytes(second.read_bytes()[:-1])
    third.unlink()
    failures = target.verify(record)
    assert [failure.partition(": ")[0] for failure in failures[:2]] == [str(first), str(second)]
    assert len(failures) == 3
    assert f"{third} is missing" in failures[2]
    with pytest.raises(RunError, match="is missing"), target.open(record):
        pass
    third.write_bytes(b"")
    first.write_bytes(first.read_bytes().replace(b"'<f4'", b"'<i4'"))
    with pytest.raises(RunError, match=f"{first} is damaged"), target.open(record):
        pass
    first.write_bytes(content)
    with pytest.raises(RunError, match=f"{second} is damaged"), target.open(record):
        pass


def test_folder_of_another_index_is_refused(tmp_path):
    target = ArrayTarget(str(tmp_path / "index"), None, "npy")
    build(target, open_source(write_source(tmp_path / "run")), "npy")
    other = open_source(write_source(tmp_path / "other", width=16))
    with pytest.raises(JobError, match=r"feature\.width: 32 → 16"):
        build(target, other, "npy")


def test_unknown_kind_is_refused(tmp_path):
    settings = Index(path=str(tmp_path), to=f"npy:{tmp_path}/index", kind="HNSW32")
    target = ArrayTarget(settings.destination, settings, "npy")
    with pytest.raises(JobError, match="'HNSW32' is not allowed"):
        target.kinds(open_source(write_source(tmp_path / "run")))


def test_width_that_is_not_a_multiple_of_eight_keeps_its_bits(tmp_path):
    source = open_source(write_source(tmp_path / "run", width=20, dtype="binary"))
    target = ArrayTarget(str(tmp_path / "index"), None, "npy")
    _, record = build(target, source, "npy")
    with target.open(record) as searcher:
        assert np.array_equal(searcher.dense_at(np.arange(source.num_vectors)), decoded(source))


def test_target_is_pickled_as_its_address(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SKTEST-secret")
    target = ArrayTarget("s3://bucket/index", None, "npy")
    assert pickle.loads(pickle.dumps(target)) == target
    assert b"SKTEST" not in pickle.dumps(target)
    assert target.address == "s3://bucket/index"


def test_vectors_of_other_lengths_are_compared_by_cosine(tmp_path):
    vectors = clustered(400) * np.linspace(0.5, 3, 400, dtype=np.float32)[:, None]
    definition = column("embedding", 32, pool="mean", layer=12)
    path = write_output(tmp_path / "run", {definition: vectors}, {"title": ["a"] * 400})
    source, target = open_source(path, ()), ArrayTarget(str(tmp_path / "index"), None, "npy")
    assert source.metric == Metric("cosine", unit=False)
    _, record = build(target, source, "npy")
    with target.open(record) as searcher:
        found = searcher.search(vectors[:50] * 7, 3, {})
        assert np.array_equal(searcher.dense_at(np.arange(400)), vectors)  # stored as they are
    assert np.array_equal(found.positions[:, 0], np.arange(50))
    assert np.allclose(found.scores[:, 0], 1, atol=1e-6)
