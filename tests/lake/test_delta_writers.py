"""Delta tables of features: what other drivers, writers and readers do with them."""

import json
import shutil
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable as DeltaVersion
from deltalake import write_deltalake

from tests.lake.backend_delta import Backend
from tests.lake.delta_tables import (
    PARTITIONED,
    add,
    at_once,
    change,
    feature_table,
    live_keys,
    new_root,
    version_of,
    write_file,
)
from tests.lake.features import COLUMNS, FEATURE_SET, definition, feature_rows, state
from varve.errors import JobError
from varve.lake.delta.delta_table import DeltaTable
from varve.lake.table import Change, HeadMovedError, VersionExpiredError
from varve.storage.object_store import Storage


@pytest.fixture(params=["disk", "s3"])
def table(request, monkeypatch) -> DeltaTable:
    return feature_table(new_root(request, monkeypatch))


@pytest.fixture
def local(tmp_path) -> DeltaTable:
    table = feature_table(str(tmp_path))
    table.prepare(definition())
    return table


def actions_of(table: DeltaTable, version: int) -> list[dict]:
    content = Storage(table.address.name).read(f"_delta_log/{version:020d}.json") or b""
    return [json.loads(line) for line in content.splitlines()]


def optimize(table: DeltaTable) -> None:
    version_of(table).optimize.compact()


def append(table: DeltaTable) -> None:
    write_deltalake(table.address.name, feature_rows([99]).cast(table.pin(None).schema), mode="append")


def delete(table: DeltaTable) -> None:
    version_of(table).delete("doc_id = 2")


def vacuum(table: DeltaTable) -> None:
    version_of(table).vacuum(0, dry_run=False, enforce_retention_duration=False)


@pytest.mark.parametrize(("other", "keys"), [(optimize, [1, 2]), (append, [1, 2, 99]), (delete, [1])])
@pytest.mark.parametrize("replaces", [False, True])
def test_commit_of_another_writer_moves_the_head_and_is_kept(table, other, keys, replaces):
    table.prepare(definition())
    add(table, 1, [1])
    add(table, 2, [2])
    removes = [file for file in table.files(2) if replaces]
    planned = change(table, 3, [write_file(table, feature_rows([3]))], removes)
    other(table)
    with pytest.raises(HeadMovedError, match="its latest version is 3, the change was made for 2"):
        table.commit(planned)
    assert live_keys(table) == keys
    assert table.state(FEATURE_SET) == state(2)
    assert add(table, 3, [3]) == 4
    assert live_keys(table) == sorted([*keys, 3])


def test_commit_between_look_and_put_moves_the_head(local, monkeypatch):
    """Another writer commits after this one has checked the head: only the conditional put can find that."""
    planned = change(local, 1, [write_file(local, feature_rows([1]))])
    create = DeltaVersion.create_write_transaction

    def late(version, *arguments, **options):
        append(local)
        return create(version, *arguments, **options)

    monkeypatch.setattr(DeltaVersion, "create_write_transaction", late)
    with pytest.raises(HeadMovedError, match="its latest version is 1"):
        local.commit(planned)
    assert live_keys(local) == [99]


def test_two_drivers_of_a_run_make_one_commit_twenty_times(table):
    table.prepare(definition())
    for number in range(20):
        one = change(table, number, [write_file(table, feature_rows([number]))])
        errors = []
        at_once([lambda one=one: table.commit(one)] * 2, errors)
        assert errors == []
    assert table.pin(None).version == 20
    assert live_keys(table) == list(range(20))


@pytest.mark.slow
@pytest.mark.parametrize("server", ["radosgw", "azurite"])
def test_two_drivers_on_another_store_make_one_commit(container, server):
    table = feature_table(container(server))
    table.prepare(definition())
    for number in range(5):
        one = change(table, number, [write_file(table, feature_rows([number]))], table.files(number)[:1])
        errors = []
        at_once([lambda one=one: table.commit(one)] * 2, errors)
        assert errors == []
    assert table.pin(None).version == 5
    assert len(live_keys(table)) == len(table.files(5)) == 1
    assert table.state(FEATURE_SET) == state(4)


def test_two_drivers_of_different_runs_cannot_both_commit(local):
    for number in range(10):
        head, errors = local.pin(None).version, []
        changes = [
            Change(head, state(number, f"run {driver}"), [write_file(local, feature_rows([2 * number + driver]))])
            for driver in range(2)
        ]
        at_once([lambda one=one: local.commit(one) for one in changes], errors)
        assert [type(error) for error in errors] == [HeadMovedError]
    assert len(live_keys(local)) == 10


def test_plain_appends_of_two_drivers_double_rows(local):
    """The control: without the state, the same rows come twice."""
    rows, errors = feature_rows([1]).cast(local.pin(None).schema), []
    at_once([lambda: write_deltalake(local.address.name, rows, mode="append")] * 2, errors)
    assert errors == []
    assert live_keys(local) == [1, 1]


@pytest.mark.parametrize("full", [False, True])
def test_vacuum_keeps_live_files_and_removes_replaced_ones(table, full):
    table.prepare(definition())
    add(table, 1, [1, 2])
    [old] = table.files(1)
    add(table, 2, [2, 3], removes=[old])
    version_of(table).vacuum(0, dry_run=False, enforce_retention_duration=False, full=full)
    assert live_keys(table) == [2, 3]
    assert table.state(FEATURE_SET) == state(2)
    with pytest.raises(VersionExpiredError, match="is gone"):
        list(table.read(1, old, ["doc_id"]))


def test_full_vacuum_removes_files_that_no_version_names(local):
    orphan = write_file(local, feature_rows([1]))
    add(local, 1, [2])
    version_of(local).vacuum(0, dry_run=False, enforce_retention_duration=False, full=True)
    assert not Path(orphan.path).exists()
    assert live_keys(local) == [2]


def test_file_with_a_deletion_vector_cannot_be_removed(tmp_path):

    folder = Path(__file__).parent / "data/delta_deletion_vectors"
    shutil.copytree(folder, tmp_path / "docs_features")
    table = feature_table(str(tmp_path))
    with pytest.raises(JobError, match="has a deletion vector, so this run cannot replace the file"):
        table.commit(change(table, 1, [], table.files(2)[:1]))


# Readers.


def test_other_readers_see_the_rows_and_the_values_of_partitions(table):
    table.prepare(PARTITIONED)
    langs = {"de": [1, 3, 5], "d e/ü": [2, 4], None: [6]}
    files = [write_file(table, feature_rows(keys, lang), json.dumps([lang])) for lang, keys in langs.items()]
    table.commit(change(table, 1, files))
    expected = {key: lang for lang, keys in langs.items() for key in keys}
    rows = Backend("").read(str(table.address)).sort_by("doc_id")
    assert dict(zip(rows["doc_id"].to_pylist(), rows["lang"].to_pylist(), strict=True)) == expected
    assert rows["embedding"].to_pylist() == [[float(key)] * 4 for key in sorted(expected)]
    options = {"allow_http": "true"} if table.address.name.startswith("s3") else None
    seen = pl.scan_delta(table.address.name, storage_options=options).sort("doc_id").collect()
    assert dict(zip(seen["doc_id"], seen["lang"], strict=True)) == expected
    assert seen["embedding"].to_list() == rows["embedding"].to_pylist()


def test_files_are_plain_parquet_for_duckdb(local):
    add(local, 1, [1, 2])
    path = local.files(1)[0].path
    assert duckdb.sql(f"SELECT doc_id, embedding[1] FROM '{path}' ORDER BY 1").fetchall() == [(1, 1.0), (2, 2.0)]


def test_vectors_survive_bit_for_bit(local):
    values = np.frombuffer(np.arange(4000, dtype="<u4") * 1048583, np.float32).reshape(-1, 4)
    rows = feature_rows(range(1000))
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 4)
    local.commit(change(local, 1, [write_file(local, rows.set_column(3, COLUMNS.field(3), vectors))]))
    [file] = local.files(1)
    found = pa.concat_tables(local.read(1, file, ["embedding"]))["embedding"].combine_chunks().flatten()
    assert found.to_numpy().tobytes() == values.tobytes()
