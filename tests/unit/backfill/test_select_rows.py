"""Which rows of a source are selected: what is read, what is refused, and when all rows are compared."""

from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.lake_tables import MemoryFeatureTable, MemoryTable, documents, encode, hashes_of, layout, write_features
from varve.backfill.copies import copy_live_rows
from varve.backfill.diff import DiffRequest, select_rows
from varve.backfill.keys import key_buckets
from varve.engine.parallel import in_threads
from varve.errors import JobError, RunError
from varve.lake.table import VersionExpiredError
from varve.lake.text_hash import TEXT_HASH
from varve.source.row_selection import RowSelection, SelectedFile
from varve.storage.object_store import Storage


class Lake:
    """A source, a destination, and runs from one to the other."""

    def __init__(self, folder, texts=("body",), deletes="follow"):
        self.folder, self.texts, self.deletes = folder, texts, deletes
        self.source = MemoryTable()
        self.features = MemoryFeatureTable(str(folder))
        self.since = None
        self.runs = 0

    def select(self, since="in step", storage=None, spread=in_threads) -> RowSelection:
        self.runs += storage is None
        storage = storage or Storage(f"{self.folder}/run{self.runs}")
        since = self.since if since == "in step" else since
        source, features = self.source, self.features
        request = DiffRequest(
            source, source.head, since, features, features.head, "doc_id", tuple(self.texts), self.deletes
        )
        return select_rows(request, storage, spread)

    def run(self) -> RowSelection:
        selection, features = self.select(), self.features
        parts = encode(self.source, self.source.head, self.texts, selection)
        storage, used = selection.storage, (parts, selection, layout())
        replaced = copy_live_rows(features, features.head, "doc_id", *used, storage, in_threads)
        features.commit([*parts, *replaced.adds], replaced.removes)
        self.since = self.source.head
        return selection


@pytest.fixture
def lake(tmp_path):
    """Three files, whose features are in step with them."""
    made = Lake(tmp_path)
    for first in (0, 10, 20):
        made.source.change(adds={f"{first:02d}.parquet": documents({first + row: f"text {row}" for row in range(10)})})
    made.run()
    made.source.reads.clear()
    return made


def keys_of(selection: RowSelection, source: MemoryTable) -> list[list]:
    """The selected keys of each shard."""
    keys = []
    for shard, file in enumerate(selection.files):
        rows = source.versions[source.head][file.path][1]["doc_id"].to_pylist()
        positions = selection.positions(shard)
        keys.append(rows if positions is None else [rows[at] for at in positions])
    return keys


def test_first_run_reads_keys_only_and_selects_whole_files(tmp_path):
    lake = Lake(tmp_path)
    lake.source.change(adds={"b": documents({1: "one", 2: "two"}), "a": documents({3: None}), "c": documents({})})
    request = DiffRequest(lake.source, lake.source.head, None, None, None, "doc_id", ("body",), "follow")
    selection = select_rows(request, Storage(str(tmp_path / "run")), in_threads)
    assert selection.files == (SelectedFile("a", "a@1", 1), SelectedFile("b", "b@1", 2))
    assert selection.counts == {"new": 3, "changed": 0, "unchanged": 0, "removed": 0}
    assert lake.source.reads == {("a", "doc_id"): 1, ("b", "doc_id"): 2}
    assert selection.prefix == "_varve/diff/none"


def test_same_version_reads_and_selects_nothing_and_starts_no_task(lake):
    lake.features.opened.clear()
    selection = lake.select(spread=lambda _work, _items: pytest.fail("a task was started"))
    assert selection.files == ()
    assert selection.counts == {"new": 0, "changed": 0, "unchanged": 30, "removed": 0}
    assert (lake.source.reads, lake.features.opened) == ({}, [])


def test_one_changed_file_is_read_and_the_others_are_not(lake):
    rows = {10: "text 0", 11: "other", 12: "text 2", 30: "new"}
    lake.source.change(removes=["10.parquet"], adds={"40.parquet": documents(rows)})
    lake.features.opened.clear()
    selection = lake.select()
    assert keys_of(selection, lake.source) == [[11, 30]]
    assert selection.counts == {"new": 1, "changed": 1, "unchanged": 22, "removed": 7}
    read = {("40.parquet", "doc_id"): 4, ("40.parquet", "body"): 4, ("10.parquet", "doc_id"): 10}
    assert lake.source.reads == read
    gone = pq.read_table(f"{selection.storage.uri}/{selection.prefix}/gone-00000.parquet")
    assert gone["key"].to_pylist() == [13, 14, 15, 16, 17, 18, 19]
    assert len({path for path in lake.features.opened if "part-00000" in path}) == 0  # keys 0 to 9 are not near


def test_deletes_that_are_kept_leave_no_removed_keys(tmp_path):
    lake = Lake(tmp_path, deletes="keep")
    lake.source.change(adds={"a": documents({1: "one", 2: "two"})})
    lake.run()
    lake.source.change(adds={"a": documents({1: "one"})})
    assert lake.run().counts == {"new": 0, "changed": 0, "unchanged": 1, "removed": 0}
    assert sorted(lake.features.content()) == [1, 2]
    lake.source.change(adds={"b": documents({2: "two", 3: "three"})})  # a row that comes back is no duplicate
    assert lake.run().counts == {"new": 1, "changed": 0, "unchanged": 2, "removed": 0}


def test_rows_that_all_left_the_source_are_removed_without_reading_a_feature(lake):
    lake.source.change(removes=["00.parquet", "10.parquet", "20.parquet"])
    lake.features.opened.clear()
    selection = lake.select()
    assert (selection.files, selection.counts["removed"]) == ((), 30)
    assert lake.features.opened == []


def test_empty_source_and_destination_select_nothing(tmp_path):
    lake = Lake(tmp_path)
    assert lake.run().counts == {"new": 0, "changed": 0, "unchanged": 0, "removed": 0}
    request = DiffRequest(lake.source, None, None, lake.features, None, "doc_id", ("body",), "follow")
    assert select_rows(request, Storage(str(tmp_path / "none")), in_threads).files == ()


@pytest.mark.parametrize("texts", [("body",), ("title", "body")])
def test_text_that_moves_between_columns_is_a_change(tmp_path, texts):
    lake = Lake(tmp_path, texts)
    rows = pa.table({"doc_id": [1, 2], "title": ["ab", "x"], "body": ["c", "y"]})
    lake.source.change(adds={"a": rows})
    lake.run()
    lake.source.change(adds={"a": pa.table({"doc_id": [1, 2], "title": ["a", "x"], "body": ["bc", "y"]})})
    assert keys_of(lake.select(), lake.source) == [[1]]


def test_title_that_is_no_text_column_is_no_change(tmp_path):
    lake = Lake(tmp_path)
    lake.source.change(adds={"a": pa.table({"doc_id": [1], "title": ["old"], "body": ["c"]})})
    lake.run()
    lake.source.change(adds={"a": pa.table({"doc_id": [1], "title": ["new"], "body": ["c"]})})
    assert lake.select().files == ()


KEYS = {
    "long strings": pa.array([f"https://example.org/{'x' * row}/{row}" for row in range(40)]),
    "int32": pa.array(range(-20, 20), pa.int32()),
    "binary": pa.array([bytes([row]) * (row % 3) + b"\x00" * row for row in range(40)], pa.binary()),
    "uuid": pa.array([row.to_bytes(16, "big") for row in range(40)], pa.binary(16)),
    "decimal": pa.array(range(40), pa.int64()).cast(pa.decimal128(38, 0)),
}


@pytest.mark.parametrize("kind", KEYS)
def test_keys_of_any_type_are_compared_in_many_buckets(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(key_buckets, "BUCKET_ROWS", 7)
    monkeypatch.setattr(key_buckets, "CHUNK_ROWS", 11)
    keys, lake = KEYS[kind], Lake(tmp_path)
    lake.source.change(adds={"a": pa.table({"doc_id": keys, "body": [f"text {row}" for row in range(40)]})})
    lake.run()
    body = ["changed" if row % 9 == 0 else f"text {row}" for row in range(2, 40)]
    lake.source.change(removes=["a"], adds={"b": pa.table({"doc_id": keys[2:], "body": body})})
    selection = lake.run()
    assert selection.counts == {"new": 0, "changed": 4, "unchanged": 34, "removed": 2}
    assert lake.features.content() == hashes_of(lake.source.rows(), "doc_id", ["body"])


def test_key_of_a_type_without_exact_equality_is_refused(tmp_path):
    lake = Lake(tmp_path)
    lake.source.change(adds={"a": pa.table({"doc_id": [0.5], "body": ["x"]})})
    with pytest.raises(JobError, match=r"source\.key: column 'doc_id' is of type double: expected integers"):
        lake.select()


def test_null_keys_are_refused_with_their_rows(lake):
    lake.source.change(adds={"90.parquet": documents({40: "x", None: "y"})})
    with pytest.raises(JobError, match=r"source\.key: doc_id is null in 1 row\(s\) of .*: row 1 of 90\.parquet\."):
        lake.select()


def test_key_twice_in_one_file_is_refused_on_the_first_run(tmp_path):
    lake = Lake(tmp_path)
    lake.source.change(adds={"a": pa.table({"doc_id": [5, 6, 5], "body": ["x", "y", "z"]})})
    with pytest.raises(JobError, match=r"1 value\(s\) of doc_id are in several rows of .*: 5 in a \(several rows\)"):
        lake.select()


def test_key_in_two_new_files_is_refused_with_both(lake):
    both = documents({44: "x", 43: "y", 45: "z", 46: "", 47: "", 48: ""})
    lake.source.change(adds={"90.parquet": both, "91.parquet": both})
    with pytest.raises(
        JobError, match=r"6 value\(s\) of doc_id .*: 43 in 90\.parquet and 91\.parquet; 44 in"
    ) as raised:
        lake.select()
    assert " 48 in" not in str(raised.value)  # five examples


def test_key_in_a_new_file_and_an_unread_one_is_refused_with_both(lake):
    lake.source.change(adds={"90.parquet": documents({13: "text 3", 50: "new"})})
    with pytest.raises(JobError, match=r"1 value\(s\) of doc_id .*: 13 in 90\.parquet and 10\.parquet"):
        lake.select()


def test_key_that_a_takedown_left_out_of_the_features_is_no_duplicate(lake):
    """The destination has a row less than the source's last version; the row's file is read again."""
    rows = lake.source.versions[lake.source.head]["10.parquet"][1]
    lake.features.commit([], [file for file in lake.features.files(lake.features.head) if "part-00001" in file.path])
    lake.source.change(adds={"10.parquet": rows.slice(0, 9)})
    assert lake.run().counts == {"new": 9, "changed": 0, "unchanged": 20, "removed": 1}


def test_expired_version_compares_all_rows(lake):
    lake.source.change(adds={"10.parquet": documents({10: "text 0", 11: "other"})})
    lake.source.expired.add(lake.since)
    selection = lake.run()
    assert selection.counts == {"new": 0, "changed": 1, "unchanged": 21, "removed": 8}
    assert lake.features.content() == hashes_of(lake.source.rows(), "doc_id", ["body"])


def test_keys_far_from_all_of_the_source_are_removed_when_all_rows_are_compared(lake):
    lake.source.change(removes=["20.parquet"])
    assert lake.select(since=None).counts == {"new": 0, "changed": 0, "unchanged": 20, "removed": 10}


def test_removed_files_of_an_old_version_compare_all_rows(lake):
    old = lake.since
    lake.source.change(adds={"10.parquet": documents({10: "text 0", 11: "other"})})
    lake.source.gone_files.add((old, "10.parquet"))
    assert lake.select().counts == {"new": 0, "changed": 1, "unchanged": 21, "removed": 8}


def test_files_of_the_pinned_version_that_are_gone_end_the_run(lake):
    version = lake.source.change(adds={"90.parquet": documents({50: "x"})})
    lake.source.gone_files.add((version, "90.parquet"))
    with pytest.raises(VersionExpiredError, match=r"90\.parquet is gone"):
        lake.select()


def test_full_comparison_finds_what_the_features_lack(lake):
    lake.features.commit([], [file for file in lake.features.files(lake.features.head) if "part-00001" in file.path])
    assert lake.select().counts["new"] == 0
    selection = lake.select(since=None)
    assert keys_of(selection, lake.source) == [list(range(10, 20))]
    assert [file.is_partial for file in selection.files] == [False]


def test_features_without_hashes_are_encoded_again(lake):
    head, folder = lake.features.head, Storage(f"{lake.folder}/foreign")
    rows = pa.concat_tables(
        table
        for file in lake.features.files(head)
        for table in lake.features.read(head, file, ["doc_id", TEXT_HASH, "embedding"])
    )
    hashes = pa.array([None, *rows[TEXT_HASH].to_pylist()[1:]], pa.binary(16))
    rows = rows.set_column(1, TEXT_HASH, hashes)
    lake.features.commit([write_features(folder, "data/all.parquet", rows)], lake.features.files(head))
    assert lake.select(since=None).counts == {"new": 0, "changed": 1, "unchanged": 29, "removed": 0}


def test_second_driver_returns_the_stored_selection(lake):
    storage = Storage(f"{lake.folder}/shared")
    lake.source.change(adds={"90.parquet": documents({50: "x"})})
    first = lake.select(storage=storage)
    lake.source.reads.clear()
    assert lake.select(storage=storage) == first
    assert lake.source.reads == {}


def test_driver_whose_buckets_another_one_deleted_returns_its_selection(lake):
    """The other one finishes between this driver's reading and its join."""
    storage = Storage(f"{lake.folder}/shared")
    lake.source.change(adds={"10.parquet": documents({10: "text 0", 11: "other"})})
    finished, calls = [], 0

    def overtaken(work, items):
        nonlocal calls
        calls += 1
        if calls == 4:  # after the removed, added and destination's rows
            finished.append(lake.select(storage=storage))
        return in_threads(work, items)

    features = lake.features
    request = DiffRequest(
        lake.source, lake.source.head, lake.since, features, features.head, "doc_id", ("body",), "follow"
    )
    assert select_rows(request, storage, overtaken) == finished[0]
    assert not [each.name for each in storage.list("_varve/diff") if "/buckets/" in each.name]


def test_positions_of_another_comparison_are_not_overwritten(lake):
    lake.source.change(adds={"10.parquet": documents({10: "text 0", 11: "other"})})
    storage = Storage(f"{lake.folder}/shared")
    selection = lake.select(storage=storage)
    name = f"{selection.prefix}/rows-00000.parquet"
    storage.delete(["_varve/diff/selection.json", name])
    other = pa.BufferOutputStream()
    pq.write_table(pa.table({"position": [7]}), other)
    storage.create(name, other.getvalue().to_pybytes())
    with pytest.raises(RunError, match=r"rows-00000\.parquet holds other rows"):
        lake.select(storage=storage)


def test_tasks_in_another_order_write_the_same_objects(lake, monkeypatch):
    monkeypatch.setattr(key_buckets, "BUCKET_ROWS", 7)
    monkeypatch.setattr(key_buckets, "CHUNK_ROWS", 11)
    texts = {key: "other" if key % 3 else f"text {key % 10}" for key in range(2, 29)}
    lake.source.change(removes=["00.parquet", "10.parquet", "20.parquet"], adds={"40.parquet": documents(texts)})
    lake.source.change(adds={"41.parquet": documents({50: "x"})})

    def backwards(work, items):
        return [work(item) for item in reversed(items)]

    selections = [lake.select(spread=spread) for spread in (in_threads, backwards)]
    assert selections[0].files == selections[1].files
    assert selections[0].counts == selections[1].counts == {"new": 1, "changed": 18, "unchanged": 9, "removed": 3}
    objects = [
        {each.name: storage.read(each.name) for each in storage.list("_varve")}
        for storage in (selection.storage for selection in selections)
    ]
    assert objects[0] == objects[1]
    assert len(objects[0]) > 3


@pytest.mark.parametrize("attempt", range(5))
def test_two_drivers_at_once_return_one_selection(lake, monkeypatch, attempt):
    monkeypatch.setattr(key_buckets, "BUCKET_ROWS", 5 + attempt)
    texts = {key: "other" if key % 3 else f"text {key % 10}" for key in range(2, 29)}
    lake.source.change(removes=["00.parquet", "10.parquet", "20.parquet"], adds={"40.parquet": documents(texts)})
    storage = Storage(f"{lake.folder}/shared")
    with ThreadPoolExecutor(2) as drivers:
        running = [drivers.submit(lake.select, storage=storage) for _ in range(2)]
        selections = [each.result() for each in running]
    assert selections[0] == selections[1]
    assert len(selections[0].positions(0)) == 18
