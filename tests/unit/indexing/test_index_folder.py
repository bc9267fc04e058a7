"""The folder of an index: requests, rows of positions, publishing, checking."""

import json
import os
import pickle
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pytest

from tests.index_sources import open_source, request_of, write_source
from tests.outputs import column, write_output
from varve.encoder.ragged import Ragged
from varve.errors import JobError, RunError
from varve.indexing.index_folder import STAGED, IndexFolder
from varve.indexing.record import IndexRecord, read_starts
from varve.storage.object_store import Storage


@pytest.fixture
def source(tmp_path):
    return open_source(write_source(tmp_path / "run"))


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    return IndexFolder(Storage(str(tmp_path / "index") if request.param == "local" else f"memory://{tmp_path}"))


def record_of(source, **changes) -> IndexRecord:
    fields = {"kind": "exact", "setting": {}, "bytes_per_vector": 4.0, "created_at": "2026-01-01", "versions": {}}
    return IndexRecord(request=request_of(source, "npy"), **(fields | changes))


def write_all(folder, source) -> pa.Table:
    rows = [source.read(part) for part in range(source.num_parts)]
    for each in reversed(rows):
        folder.write_ids(each)
    return pa.concat_tables([each.ids for each in rows])


def test_begun_folder_accepts_the_same_request_from_another_path(folder, source):
    request = request_of(source, "npy", kind="auto")
    folder.begin(request)
    folder.begin(request)
    folder.begin(replace(request, source=request.source | {"path": "moved"}))
    assert folder.published() is None


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"settings": {"kind": "HNSW32", "keep": ["a"]}}, "settings.kind: auto → HNSW32"),
        ({"target": "fbin"}, "target: npy → fbin"),
        ({"num_vectors": 5}, "num_vectors: 997 → 5"),
        ({"metric": {"name": "dot", "unit": False}}, "metric.name: cosine → dot"),
    ],
)
def test_folder_of_another_request_is_refused_with_the_differences(folder, source, changes, line):
    request = request_of(source, "npy", kind="auto", keep=["a"])
    folder.begin(request)
    with pytest.raises(JobError) as raised:
        folder.begin(replace(request, **changes))
    assert line in str(raised.value)
    assert "settings.keep" not in str(raised.value)
    assert folder.storage.uri in str(raised.value)


def test_folder_with_files_of_others_is_refused_and_unchanged(folder, source):
    folder.storage.create("vectors-00000.npy", b"mine")
    with pytest.raises(JobError, match=r"holds other files, such as 'vectors-00000\.npy'. Choose a new folder"):
        folder.begin(request_of(source, "npy"))
    assert folder.storage.read("_varve/index.json") is None
    assert folder.storage.read("vectors-00000.npy") == b"mine"


def test_staged_files_are_removed_and_files_with_such_names_are_kept(tmp_path):
    folder = IndexFolder(Storage(str(tmp_path)))
    mine = ["Invoice #12", "data#1", "music/Track #7", "music/index.faiss#1", "index.html/a#1", "ids/a.parquet#2"]
    staged = [
        "index.faiss#1",
        "vectors-00000.npy#2",
        "_varve/index.json#1",
        "ids/ids-000000000000-000000000100.parquet#9",
    ]
    for name in (*mine, *staged):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"content")
        os.utime(path, (0, 0))
    folder.remove_staged()
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == set(mine)


def test_request_of_another_version_is_reported(folder, source):
    folder.storage.create("_varve/index.json", b'{"format": 99}')
    with pytest.raises(RunError, match=r"index\.json cannot be read by this version"):
        folder.begin(request_of(source, "npy"))


def test_rows_of_positions_come_in_their_order(folder, source):
    expected = write_all(folder, source)
    order = np.random.default_rng(0).permutation(source.num_vectors)
    for positions in (order, order[:1], np.array([996, 0, 996, 148, 149]), np.zeros(0, np.int64)):
        found = folder.rows(positions)
        assert found.equals(expected.take(pa.array(positions))), positions
        assert found.column_names == ["position", "shard", "row", "doc_id", "title"]


def test_parts_with_rows_are_found_by_listing(folder, source):
    assert folder.parts_with_ids(source.starts) == {3}  # which has no vectors
    for part in (0, 2, 3, 4, 7):
        folder.write_ids(source.read(part))
    assert folder.parts_with_ids(source.starts) == {0, 2, 3, 4, 7}
    folder.write_ids(source.read(0))
    assert len(list(folder.storage.list("ids"))) == 4


def test_parts_without_vectors_need_no_rows(folder, tmp_path):
    counts = [0, 0, 2, 0, 1, 0, 0, 3, 0]
    values = np.zeros((sum(counts), 4), np.float32) + 0.5
    definition = column("embedding", 4, pool="mean", layer=12, form="windows")
    lists = Ragged(values, np.cumsum([0, *counts]))
    path = write_output(tmp_path / "run", {definition: lists}, {"title": ["a"] * 9}, rows_per_part=1)
    source = open_source(path, ())
    for part in range(source.num_parts):
        folder.write_ids(source.read(part))
    assert folder.parts_with_ids(source.starts) == {*range(9)}
    assert folder.rows(np.arange(6))["row"].to_pylist() == [2, 2, 4, 7, 7, 7]


def test_missing_and_damaged_rows_are_reported(folder, source):
    with pytest.raises(RunError, match="ids is missing"):
        folder.rows(np.array([1]))
    folder.write_ids(source.read(1))
    for position in (0, 299):
        with pytest.raises(RunError, match=f"no row for position {position}"):
            folder.rows(np.array([200, position]))
    folder.storage.create("ids/ids-000000000299-000000000399.parquet", b"not Parquet")
    with pytest.raises(RunError, match=r"ids-000000000299-000000000399\.parquet is missing or damaged"):
        folder.rows(np.array([300]))


def test_published_record_has_the_size_and_hash_of_every_file(folder, source):
    folder.begin(request_of(source, "npy"))
    write_all(folder, source)
    folder.storage.create("a.bin", b"12345")
    assert folder.published() is None
    record = folder.publish(record_of(source), ["a.bin"])
    assert record.files["a.bin"] == {
        "bytes": 5, "sha256": "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5"
    }  # fmt: skip
    assert len(record.files) == 1 + 7
    assert folder.published() == record
    assert folder.verify(record) == []
    assert json.loads(folder.storage.read("_varve/manifest.json"))["kind"] == "exact"


def test_published_files_are_hashed_by_the_given_tasks_in_any_order(folder, source):
    write_all(folder, source)
    folder.storage.create("a.bin", b"12345")
    taken = []

    def backwards(work, items):
        for item in reversed(items):
            taken.append(item)
            yield pickle.loads(pickle.dumps(work))(item)

    files = folder.publish(record_of(source), ["a.bin"], backwards).files
    assert sorted(taken) == sorted(files)
    assert [*files] == ["a.bin", *sorted(files.keys() - {"a.bin"})]
    assert all(files[name] == folder.measure(name) for name in files)


def test_second_publisher_gets_the_record_of_the_first(folder, source):
    folder.begin(request_of(source, "npy"))
    write_all(folder, source)
    first = folder.publish(record_of(source), [])
    second = folder.publish(record_of(source, created_at="2026-02-02"), [])
    assert second == first
    assert folder.published() == first


def test_missing_file_is_not_published(folder, source):
    write_all(folder, source)
    with pytest.raises(RunError, match=r"a\.bin is missing"):
        folder.publish(record_of(source), ["a.bin"])
    assert folder.published() is None


def test_changed_and_missing_files_are_found(folder, source, tmp_path):
    write_all(folder, source)
    for name in ("a.bin", "b.bin", "c.bin", "d.bin"):
        folder.storage.create(name, b"12345")
    record = folder.publish(record_of(source), ["a.bin", "b.bin", "c.bin", "d.bin"])
    for name, content in (("a.bin", b"12346"), ("b.bin", b"1234")):
        (tmp_path / "new").write_bytes(content)
        folder.storage.upload(name, tmp_path / "new")
    folder.storage.delete(["c.bin"])
    failures = folder.verify(record)
    assert len(failures) == 3
    assert "a.bin: sha256 is" in failures[0]
    assert "b.bin: bytes is 4, expected 5" in failures[1]
    assert "c.bin is missing" in failures[2]


def test_damaged_manifest_is_reported(folder, source):
    folder.begin(request_of(source, "npy"))
    folder.storage.create("_varve/manifest.json", b"{")
    with pytest.raises(RunError, match=r"manifest\.json cannot be read"):
        folder.published()


@pytest.mark.parametrize(
    "changes",
    [
        {"source": {"path": -1}}, {"source": {"path": None}}, {"feature": {"name": []}}, {"feature": {"width": "8"}},
        {"metric": {"unit": None}}, {"settings": {"keep": 0.5}}, {"settings": {"key": {}}},
    ],
)  # fmt: skip
def test_manifest_with_a_value_of_another_type_is_reported(changes, folder, source):
    folder.begin(request_of(source, "npy"))
    content = asdict(record_of(source))
    for section, values in changes.items():
        content["request"][section] |= values
    folder.storage.create("_varve/manifest.json", json.dumps(content).encode())
    with pytest.raises(RunError, match=r"manifest\.json cannot be read"):
        folder.published()


@pytest.mark.parametrize("values", [None, {}, [], [1], [0, 0], [0, 5, 3], [0, 10], [0, {}], [0, 2.5], [False]])
def test_first_positions_that_are_not_ascending_from_0_are_refused(values):
    assert read_starts([0, 5, 9], 10) == [0, 5, 9]
    with pytest.raises(ValueError, match="first positions"):
        read_starts(values, 10)


def test_staged_objects_are_removed_and_others_stay(folder, source):
    write_all(folder, source)
    for name in (f"{STAGED}/f16/a", f"{STAGED}/b", "_varve/index.json", "vectors.npy"):
        folder.storage.create(name, b"x")
    folder.remove_staged()
    folder.remove_staged()
    assert list(folder.storage.list(STAGED)) == []
    left = {entry.name for entry in folder.storage.list("")}
    assert {"_varve/index.json", "vectors.npy"} <= left
    assert len(left) == 9


def test_object_is_a_local_file(folder, tmp_path):
    folder.storage.create("data/a.bin", b"12345")
    path = folder.local_file("data/a.bin", tmp_path)
    assert path.read_bytes() == b"12345"
    assert folder.local_file("data/a.bin", tmp_path) == path
    with pytest.raises(RunError, match=r"b\.bin is missing"):
        folder.local_file("b.bin", tmp_path)


def test_fingerprint_is_that_of_the_content(source):
    request = request_of(source, "npy", kind="auto")
    moved = replace(request, source=request.source | {"path": "elsewhere"})
    assert moved.fingerprint == request.fingerprint
    assert replace(request, settings={"kind": "exact"}).fingerprint != request.fingerprint
    other = replace(request, source=request.source | {"manifest_sha256": "0"})
    assert other.fingerprint != request.fingerprint


@pytest.mark.parametrize("name", ["/dev/zero", "../run/_varve/job.json", "_varve/../../x", "a\0b"])
def test_file_outside_of_the_folder_is_not_read(folder, name, tmp_path):
    with pytest.raises(RunError, match="leads out of the folder"):
        folder.local_file(name, tmp_path)
