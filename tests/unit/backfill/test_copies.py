"""Files of a destination with stale rows are copied without them; others are not opened or not written."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.lake_tables import MemoryFeatureTable, documents, features, layout, write_features
from varve.backfill.copies import copy_live_rows
from varve.backfill.keys.stale_keys import write_gone_keys
from varve.backfill.run_paths import object_name, run_path
from varve.engine.parallel import in_threads
from varve.errors import RunError
from varve.lake.table import NewFile
from varve.output.part_layout import key_range
from varve.source.row_selection import RowSelection
from varve.storage.object_store import Storage


class Runs:
    """A destination with three files of ten keys each, and one run."""

    def __init__(self, folder):
        self.features = MemoryFeatureTable(str(folder))
        earlier = Storage(f"{folder}/earlier")
        self.files = [
            self.write(earlier, f"data/{first:02d}.parquet", range(first, first + 10)) for first in (0, 10, 20)
        ]
        self.head = self.features.commit(self.files)
        self.features.opened.clear()
        self.storage = Storage(f"{folder}/run")

    @staticmethod
    def write(storage, name, keys, text="old") -> NewFile:
        return write_features(storage, name, features(documents(dict.fromkeys(keys, text)), "doc_id", ["body"]))

    def copy(self, parts, *, changed=0, gone=(), head=None, compared=None):
        prefix = f"_varve/diff/{self.head if compared is None else compared}"
        write_gone_keys(self.storage, prefix, 0, pa.array(gone, pa.int64()))
        counts = {"new": 1, "changed": changed, "unchanged": 0, "removed": len(gone)}
        selection = RowSelection(self.storage, prefix, (), counts)
        head = self.head if head is None else head
        return copy_live_rows(self.features, head, "doc_id", parts, selection, layout(), self.storage, in_threads)


@pytest.fixture
def runs(tmp_path):
    return Runs(tmp_path)


def test_file_with_a_changed_row_is_copied_without_it(runs):
    replaced = runs.copy([runs.write(runs.storage, "data/part.parquet", [13, 40], "new")], changed=1)
    assert ([file.path for file in replaced.removes], replaced.num_removed) == ([runs.files[1].path], 1)
    (copy,) = replaced.adds
    assert copy.path.startswith(f"{runs.storage.uri}/kept/")
    assert (copy.num_rows, copy.key_range, copy.partition) == (9, (10, 19), runs.files[1].partition)
    stored, old = pq.ParquetFile(copy.path), pq.read_table(runs.files[1].path)
    assert stored.read().equals(old.filter(pa.array([key != 13 for key in range(10, 20)])))
    assert b"ARROW:schema" not in stored.metadata.metadata
    assert stored.schema_arrow.field("embedding").metadata == {b"PARQUET:field_id": b"3"}


def test_only_files_near_the_keys_are_opened_and_only_stale_ones_read_whole(runs):
    runs.copy([runs.write(runs.storage, "data/part.parquet", [13, 25], "new")], changed=2)
    assert [path.rpartition("/")[2] for path in sorted(runs.features.opened)] == [
        "10.parquet", "10.parquet", "20.parquet", "20.parquet"
    ]  # fmt: skip


def test_file_whose_rows_are_all_stale_has_no_copy(runs):
    replaced = runs.copy([], gone=list(range(20, 30)))
    assert (replaced.adds, [file.path for file in replaced.removes]) == ([], [runs.files[2].path])


def test_gone_and_changed_keys_leave_one_copy(runs):
    replaced = runs.copy([runs.write(runs.storage, "data/part.parquet", [13], "new")], changed=1, gone=[11, 99])
    (copy,) = replaced.adds
    assert pq.read_table(copy.path)["doc_id"].to_pylist() == [10, 12, 14, 15, 16, 17, 18, 19]
    assert replaced.num_removed == 2


def test_new_rows_alone_open_no_file_of_the_head_they_were_compared_with(runs):
    assert runs.copy([runs.write(runs.storage, "data/part.parquet", [15], "new")]).removes == []
    assert runs.features.opened == []


def test_new_rows_that_another_commit_added_meanwhile_are_replaced(runs):
    part = runs.write(runs.storage, "data/part.parquet", [40], "new")
    head = runs.features.commit([runs.write(Storage(f"{runs.storage.uri}-other"), "data/x.parquet", [40, 41])])
    replaced = runs.copy([part], head=head, compared=runs.head)
    assert [copy.num_rows for copy in replaced.adds] == [1]
    runs.features.commit([part, *replaced.adds], replaced.removes)
    assert sorted(runs.features.content()) == [*range(30), 40, 41]


def test_copies_made_again_are_the_same_files(runs):
    parts = [runs.write(runs.storage, "data/part.parquet", [13], "new")]
    assert runs.copy(parts, changed=1) == runs.copy(parts, changed=1)


def test_copy_of_other_rows_is_not_used(runs):
    parts = [runs.write(runs.storage, "data/part.parquet", [13], "new")]
    (copy,) = runs.copy(parts, changed=1).adds
    name = copy.path.removeprefix(f"{runs.storage.uri}/")
    runs.storage.delete([name])
    runs.write(runs.storage, name, [1, 2])
    with pytest.raises(RunError, match=r"kept/.* is not a copy of these rows"):
        runs.copy(parts, changed=1)


def test_missing_part_is_an_error(runs):
    parts = [runs.write(runs.storage, "data/part.parquet", [13], "new")]
    runs.storage.delete(["data/part.parquet"])
    with pytest.raises(RunError, match=r"data/part\.parquet is missing"):
        runs.copy(parts, changed=1)


def test_many_parts_and_many_gone_keys_are_found_in_files_of_any_order(tmp_path):
    keys = [(row * 7919) % 10_007 for row in range(10_007)]
    table, storage = MemoryFeatureTable(str(tmp_path)), Storage(f"{tmp_path}/earlier")
    head = table.commit([Runs.write(storage, f"data/{at}.parquet", keys[at::4]) for at in range(4)])
    run = Storage(f"{tmp_path}/run")
    stale = set(keys[::5])
    parts = [Runs.write(run, f"data/{at:02d}.parquet", keys[::5][at::10], "new") for at in range(10)]
    selection = RowSelection(run, "_varve/diff/0", (), {"changed": len(stale), "removed": 0})
    replaced = copy_live_rows(table, head, "doc_id", parts, selection, layout(), run, in_threads)
    table.commit([*parts, *replaced.adds], replaced.removes)
    assert replaced.num_removed == len(stale)
    assert sorted(table.content()) == sorted(keys)


def test_string_keys_are_removed(tmp_path):
    table, run = MemoryFeatureTable(str(tmp_path)), Storage(f"{tmp_path}/run")
    rows = features(documents({"é": "a", "b": "b", "": "c"}, pa.string()), "doc_id", ["body"])
    head = table.commit([write_features(Storage(f"{tmp_path}/earlier"), "data/a.parquet", rows)])
    write_gone_keys(run, "_varve/diff/1", 0, pa.array(["é", ""], pa.large_string()))
    selection = RowSelection(run, "_varve/diff/1", (), {"changed": 0, "removed": 2})
    (copy,) = copy_live_rows(table, head, "doc_id", [], selection, layout(), run, in_threads).adds
    assert pq.read_table(copy.path)["doc_id"].to_pylist() == ["b"]


def test_gone_keys_of_a_bucket_are_sorted_in_groups_with_statistics(tmp_path):
    storage = Storage(str(tmp_path))
    write_gone_keys(storage, "d", 3, pa.array(range(200_000, 0, -1)))
    parquet = pq.ParquetFile(tmp_path / "d/gone-00003.parquet")
    assert parquet.read()["key"].to_pylist() == list(range(1, 200_001))
    groups = [parquet.metadata.row_group(at).column(0).statistics for at in range(parquet.num_row_groups)]
    assert [(each.min, each.max) for each in groups][:2] == [(1, 65_536), (65_537, 131_072)]
    assert key_range(parquet.read()["key"]) == (1, 200_000)


@pytest.mark.parametrize(
    ("folder", "uri", "expected"),
    [
        ("/data/lake/varve", "/data/lake/varve/run1", "/data/lake/varve/run1/kept/a.parquet"),
        ("file:///data/lake/varve", "/data/lake/varve/run1", "file:///data/lake/varve/run1/kept/a.parquet"),
        ("file:///data/lake/varve/", "file:///data/lake/varve/run1", "file:///data/lake/varve/run1/kept/a.parquet"),
        ("s3://bucket/lake/varve", "s3://bucket/lake/varve/run1", "s3://bucket/lake/varve/run1/kept/a.parquet"),
        ("/data/lake", "/elsewhere/run1", "/elsewhere/run1/kept/a.parquet"),
    ],
)
def test_path_of_a_copy_has_the_form_of_the_tables_folder(folder, uri, expected):
    storage = Storage(uri)
    assert run_path(folder, storage, "kept/a.parquet") == expected
    assert object_name(folder, storage, expected) == "kept/a.parquet"
    assert object_name(folder, storage, f"{storage.uri}/data/b.parquet") == "data/b.parquet"


def test_path_outside_the_run_is_refused():
    with pytest.raises(RunError, match=r"/other/a\.parquet is not below the folder of its run, /data/run"):
        object_name("/data", Storage("/data/run"), "/other/a.parquet")
