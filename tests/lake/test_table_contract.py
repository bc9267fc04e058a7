"""What every format does as a source: pinned versions, files whose identity follows their rows, reads with deletes."""

import pickle
import random

import pyarrow as pa
import pytest

from tests.lake.backends import SCHEMA, rows
from tests.servers.stores import SECRET_KEY
from varve.config.table_address import parse_table_address
from varve.errors import JobError
from varve.lake.open_table import open_table
from varve.lake.table import Table, TableFile


def opened(backend) -> Table:
    return open_table(parse_table_address(backend.address))


def contents(table: Table, version: int | None, columns=("doc_id", "lang", "body")) -> dict[str, list[dict]]:
    """Path of each file → its rows."""
    return {
        file.path: [row for batch in table.read(version, file, columns) for row in batch.to_pylist()]
        for file in table.files(version, "doc_id")
    }


def all_rows(table: Table, version: int | None, columns=("doc_id", "lang", "body")) -> list[dict]:
    found = [row for each in contents(table, version, columns).values() for row in each]
    return sorted(found, key=lambda row: row["doc_id"])


def expected(backend) -> list[dict]:
    return backend.read(backend.address).select(SCHEMA.names).sort_by("doc_id").to_pylist()


def identities(table: Table) -> dict[str, TableFile]:
    return {file.identity: file for file in table.files(table.pin(None).version, "doc_id")}


def test_read_current_version_has_the_rows_of_the_format(backend):
    backend.create(rows(range(20)))
    backend.append(rows(range(20, 23)))
    table = opened(backend)
    pin = table.pin(None)
    assert pin.schema.equals(SCHEMA)
    assert all_rows(table, pin.version) == expected(backend) == rows(range(23)).to_pylist()
    files = table.files(pin.version)
    assert [file.path for file in files] == sorted({file.path for file in files})
    assert sum(file.num_rows for file in files if file.num_rows is not None) == 23


def test_read_selected_columns_come_in_that_order_with_plain_types(backend):
    backend.create(rows(range(5)))
    table = opened(backend)
    version = table.pin(None).version
    [batch] = [batch for file in table.files(version) for batch in table.read(version, file, ["body", "doc_id"])]
    assert batch.schema.equals(pa.schema([("body", pa.string()), ("doc_id", pa.int64())]))


def test_read_many_rows_come_in_small_tables_in_the_order_of_the_file(backend):
    if backend.address.startswith("lance"):
        pytest.skip("the files of this backend have ten rows")
    backend.create(rows(range(30_000)))
    table = opened(backend)
    version = table.pin(None).version
    [file] = table.files(version)
    batches = list(table.read(version, file, ["doc_id"]))
    assert max(map(len, batches)) <= 10_000
    assert pa.concat_tables(batches)["doc_id"].to_pylist() == list(range(30_000))


def test_files_key_range_bounds_the_keys(backend):
    backend.create(rows(range(10, 20)))
    table = opened(backend)
    version = table.pin(None).version
    for file in table.files(version, "doc_id"):
        assert file.key_range is None or file.key_range == (10, 19)


def test_pin_old_version_has_its_rows_after_later_changes(backend):
    backend.create(rows(range(10)))
    table = opened(backend)
    first = table.pin(None)
    backend.delete([3])
    backend.update(rows([4], "changed {}"))
    again = table.pin(first.version)
    assert (again.uuid, again.version) == (first.uuid, first.version)
    assert all_rows(table, first.version) == rows(range(10)).to_pylist()
    latest = table.pin(None)
    assert (latest.uuid, latest.version == first.version) == (first.uuid, False)
    changed = all_rows(table, latest.version)
    assert [row["doc_id"] for row in changed] == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert changed[3]["body"] == "changed 4"


def test_pin_version_that_never_was_is_refused(backend):
    backend.create(rows(range(3)))
    with pytest.raises(JobError, match="99999"):
        opened(backend).pin(99999)


def test_pin_missing_table_is_refused(backend):
    with pytest.raises(JobError, match="docs"):
        opened(backend).pin(None)


def test_identity_of_files_is_stable_across_appends(backend):
    backend.create(rows(range(10)))
    table = opened(backend)
    before = identities(table)
    backend.append(rows(range(10, 12)))
    after = identities(table)
    assert set(before) < set(after)
    assert {after[each].path for each in before} == {file.path for file in before.values()}


def test_identity_of_a_file_changes_with_its_deletes_and_no_other_does(backend):
    backend.create(rows(range(10)))
    backend.append(rows(range(10, 20)))
    table = opened(backend)
    before = identities(table)
    backend.delete([12])
    after = identities(table)
    assert len(set(before) & set(after)) == 1
    assert all_rows(table, table.pin(None).version) == expected(backend)


def test_compaction_changes_files_and_no_row(backend):
    backend.create(rows(range(5)))
    for start in range(5, 25, 5):
        backend.append(rows(range(start, start + 5)))
    table = opened(backend)
    before = table.pin(None)
    backend.compact()
    after = table.pin(None)
    assert after.version != before.version
    assert all_rows(table, after.version) == all_rows(table, before.version) == rows(range(25)).to_pylist()
    assert len(table.files(after.version)) < len(table.files(before.version))


def test_empty_table_has_no_rows(backend):
    backend.create(rows([]))
    table = opened(backend)
    pin = table.pin(None)
    assert pin.schema.names == SCHEMA.names
    assert all_rows(table, pin.version) == []


def test_table_of_which_all_rows_are_deleted_has_no_rows(backend):
    backend.create(rows(range(4)))
    backend.delete([0, 1, 2, 3])
    table = opened(backend)
    assert all_rows(table, table.pin(None).version) == []


def test_handles_and_files_can_be_pickled_and_hold_no_secret(backend):
    backend.create(rows(range(4)))
    table = opened(backend)
    version = table.pin(None).version
    table, files = pickle.loads(stored := pickle.dumps((table, table.files(version))))
    assert SECRET_KEY.encode() not in stored
    assert SECRET_KEY not in repr((table, files, table.pin(None)))
    assert [row["doc_id"] for batch in table.read(version, files[0], ["doc_id"]) for row in batch.to_pylist()]


@pytest.mark.parametrize("seed", [1, 2])
def test_equal_identities_in_two_versions_mean_equal_rows(backend, seed):
    """The rule by which a run reads no unchanged file, over random histories of four kinds of changes."""
    chance = random.Random(seed)
    backend.create(rows(range(12)))
    table, alive, seen = opened(backend), set(range(12)), {}
    for step in range(8):
        version = table.pin(None).version
        stored = contents(table, version)
        assert sorted(row["doc_id"] for each in stored.values() for row in each) == sorted(alive)
        for file in table.files(version):
            assert seen.setdefault(file.identity, stored[file.path]) == stored[file.path]
        some = chance.sample(sorted(alive), 2)
        action = chance.choice(["append", "update", "delete", "compact"])
        if action == "append":
            backend.append(rows(new := range(100 * (step + 1), 100 * (step + 1) + 3)))
            alive |= set(new)
        elif action == "update":
            backend.update(rows(some, f"step {step} {{}}"))
        elif action == "delete":
            backend.delete(some)
            alive -= set(some)
        else:
            backend.compact()


@pytest.fixture
def partitioned(backend):
    """Whether the format has partitions; a null value is among them."""
    if backend.address.startswith("lance"):
        pytest.skip("Lance has no partitions")
    backend.create(rows(range(9), lang=lambda key: ("de", "en", None)[key % 3]), "lang")
    return backend


def test_partition_of_each_file_is_that_of_its_rows_null_too(partitioned):
    table = opened(partitioned)
    pin = table.pin(None)
    assert [(each.column, each.transform) for each in pin.partition] == [("lang", "identity")]
    stored = contents(table, pin.version)
    found = {file.partition: {row["lang"] for row in stored[file.path]} for file in table.files(pin.version)}
    assert found == {'["de"]': {"de"}, '["en"]': {"en"}, "[null]": {None}}
    assert all_rows(table, pin.version) == expected(partitioned)
