"""Delta tables of features: definition, commits and state."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from deltalake import write_deltalake
from deltalake.transaction import AddAction

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
from varve.errors import JobError, RunError
from varve.lake.delta.column_types import decode_partition
from varve.lake.delta.delta_table import DeltaTable
from varve.lake.table import NewFile, PartitionField
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


# The definition.


def test_prepare_creates_a_table_with_the_columns_of_the_definition(table):
    assert not table.exists()
    assert table.state(FEATURE_SET) is None
    table.prepare(PARTITIONED)
    table.prepare(PARTITIONED)
    pin = table.pin(None)
    assert table.exists()
    assert pin.version == 0
    assert pin.partition == (PartitionField("lang", "lang"),)
    assert pin.schema.names == COLUMNS.names
    assert pin.schema.field("text_hash").type == pa.binary()
    assert pin.schema.field("embedding").type.value_type == pa.float32()
    assert version_of(table).metadata().configuration == {"delta.dataSkippingStatsColumns": "doc_id"}
    assert table.field_ids() == {}
    assert table.state(FEATURE_SET) is None
    assert table.files(0) == table.files(None) == []


def test_drivers_that_create_at_once_end_with_one_version(tmp_path):
    for attempt in range(10):
        table, errors = feature_table(f"{tmp_path}/{attempt}"), []
        at_once([lambda table=table: table.prepare(definition())] * 4, errors)
        assert errors == []
        assert version_of(table).version() == 0


def test_prepare_adds_missing_columns_and_keeps_rows(table):
    table.prepare(definition())
    add(table, 1, [1, 2])
    wider = definition(schema=COLUMNS.append(pa.field("title", pa.string())))
    table.prepare(wider)
    table.prepare(wider)
    assert table.pin(None).version == 2
    assert table.pin(None).schema.names == [*COLUMNS.names, "title"]
    assert table.state(FEATURE_SET) == state(1)
    [file] = table.files(2)
    assert pa.concat_tables(table.read(2, file, ["title", "doc_id"]))["title"].to_pylist() == [None, None]


def test_drivers_that_add_columns_at_once_end_with_one_version(local):
    wider, errors = definition(schema=COLUMNS.append(pa.field("title", pa.string()))), []
    at_once([lambda: local.prepare(wider)] * 4, errors)
    assert errors == []
    assert local.pin(None).version == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": "num_tokens"}, "is of the key 'doc_id', the job of 'num_tokens'"),
        ({"feature_set": "other"}, "is of a feature set"),
        ({"source_uuid": "other"}, "is of a source table '6fe1-source', the job of 'other'"),
        ({"partition": (PartitionField("lang", "lang"),)}, r"is of partition columns \[\], the job of \['lang'\]"),
        ({"partition": (PartitionField("b", "doc_id", "bucket[4]"),)}, r"Delta has no partitions by bucket\[4\]"),
    ],
)
def test_table_of_another_definition_is_refused(local, changes, message):
    with pytest.raises(JobError, match=message):
        local.prepare(definition(**changes))


def test_column_of_another_type_is_refused(local):
    changed = COLUMNS.set(4, pa.field("num_tokens", pa.string()))
    with pytest.raises(JobError, match=r"column 'num_tokens' of delta.* is of type int32, the job's of string"):
        local.prepare(definition(schema=changed))


def test_table_of_another_application_is_refused(tmp_path):
    table = feature_table(str(tmp_path))
    write_deltalake(table.address.name, pa.table({"doc_id": [1], "text_hash": [b"x"]}))
    with pytest.raises(JobError, match="was not made by Varve"):
        table.prepare(definition())


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (pa.list_(pa.float16(), 4), "halffloat"),
        (pa.list_(pa.int8(), 4), "lists of int8"),
        (pa.list_(pa.uint8()), "uint8"),
        (pa.list_(pa.list_(pa.float16())), "halffloat"),
        (pa.struct([("v", pa.list_(pa.int8()))]), "lists of int8"),
    ],
)
def test_vectors_that_readers_lose_are_refused_by_name(tmp_path, kind, named):
    with pytest.raises(JobError, match=f"column 'embedding' of .*: Delta has no {named}. Expected float32"):
        feature_table(str(tmp_path)).prepare(definition(schema=COLUMNS.set(3, pa.field("embedding", kind))))
    assert not feature_table(str(tmp_path)).exists()


# Commits.


def test_commit_adds_and_removes_files_and_records_the_state(table):
    table.prepare(PARTITIONED)
    german, english = (write_file(table, feature_rows(keys, lang), f'["{lang}"]') for lang, keys in LANGUAGES.items())
    assert table.commit(change(table, 3, [german, english])) == 1
    assert live_keys(table) == [1, 2, 3, 4, 5]
    assert table.state(FEATURE_SET) == state(3)
    assert table.state("0" * 64) is None
    assert table.state(FEATURE_SET[:12] + "0" * 52) is None
    old = next(file for file in table.files(1) if file.path == german.path)
    kept = write_file(table, feature_rows([3, 5]), '["de"]')
    assert table.commit(change(table, 2**62 + 1, [kept], [old])) == 2
    assert live_keys(table) == [2, 3, 4, 5]
    assert table.state(FEATURE_SET) == state(2**62 + 1)
    assert sorted(file.path for file in table.files(2)) == sorted([kept.path, english.path])
    assert pickle.loads(pickle.dumps(table)) == table


LANGUAGES = {"de": [1, 3, 5], "en": [2, 4]}


def test_files_of_a_commit_have_statistics_of_the_key_and_relative_paths(table):
    table.prepare(PARTITIONED)
    new = write_file(table, feature_rows([7, 5]), "[null]")
    empty = write_file(table, feature_rows([]), '["de"]')
    table.commit(change(table, 1, [new, empty]))
    by_path = {file.path: file for file in table.files(1, "doc_id")}
    assert [(by_path[file.path].num_rows, by_path[file.path].key_range) for file in (new, empty)] == [
        (2, (5, 7)),
        (0, None),
    ]
    assert [by_path[file.path].partition for file in (new, empty)] == ["[null]", '["de"]']
    actions = actions_of(table, 1)
    added = [action["add"] for action in actions if "add" in action]
    assert [action["path"] for action in added] == [file.path[len(table.address.name) + 1 :] for file in (new, empty)]
    assert json.loads(added[0]["stats"]) == {
        "numRecords": 2, "minValues": {"doc_id": 5}, "maxValues": {"doc_id": 7}, "nullCount": {"doc_id": 0},
    }  # fmt: skip
    info = next(action["commitInfo"] for action in actions if "commitInfo" in action)
    assert info["varve.source_version"] == "1"
    assert info["varve.new"] == "3"


def test_details_of_a_change_are_in_the_history_with_one_prefix(local):
    local.commit(replace(change(local, 1), details={"rows-new": "3", "varve.rows-changed": "4"}))
    entry = version_of(local).history(1)[0]
    assert {name: entry[name] for name in entry if name.startswith("varve.rows")} == {
        "varve.rows-new": "3", "varve.rows-changed": "4",
    }  # fmt: skip


def test_partition_values_of_other_formats_become_text():
    assert decode_partition('[7, true, 1.5, "", null, "de"]', "abcdef") == {
        "a": "7", "b": "true", "c": "1.5", "d": None, "e": None, "f": "de",
    }  # fmt: skip


@pytest.mark.parametrize("path", ["/elsewhere/part.parquet", "s3://other/part.parquet", "relative.parquet"])
def test_file_outside_of_the_table_is_refused(local, path):
    with pytest.raises(JobError, match=f"{path} is not below the table: expected a file in .*/varve"):
        local.commit(change(local, 1, [NewFile(path, 1, 1)]))
    assert local.pin(None).version == 0


def test_absolute_path_in_the_log_makes_a_table_unreadable(local, tmp_path):
    """The control of the test above: a file elsewhere, named in the log as other applications might."""
    add(local, 1, [1])
    version, outside = version_of(local), tmp_path / "part.parquet"
    shutil.copy(local.files(1)[0].path, outside)
    action = AddAction(f"file://{outside}", outside.stat().st_size, {}, 0, data_change=True, stats="{}")
    version.create_write_transaction([action], "append", version.schema(), [])
    with pytest.raises(FileNotFoundError):
        pl.read_delta(local.address.name)


def test_state_without_files_is_a_version_of_its_own(table):
    table.prepare(definition())
    assert add(table, 1, [1]) == 1
    assert table.commit(change(table, 2)) == 2
    assert table.state(FEATURE_SET) == state(2)
    assert live_keys(table) == [1]
    assert not any("add" in action or "remove" in action for action in actions_of(table, 2))


def test_change_whose_state_is_there_is_not_committed_again(table):
    table.prepare(definition())
    first = change(table, 1, [write_file(table, feature_rows([1]))])
    assert [table.commit(first) for _ in range(3)] == [1, 1, 1]
    version_of(table).optimize.compact()
    write_deltalake(table.address.name, pa.table(version_of(table).scan()), mode="append")
    assert table.commit(first) == 1
    assert table.pin(None).version == 2


def test_state_outlives_checkpoints_and_the_end_of_the_log(local):
    add(local, 5, [1])
    for _ in range(3):
        write_deltalake(local.address.name, feature_rows([9]).cast(local.pin(None).schema), mode="append")
    version_of(local).create_checkpoint()
    for file in Path(local.address.name).glob("_delta_log/*.json"):
        file.unlink()
    assert local.state(FEATURE_SET) == state(5)


def test_missing_object_of_the_state_is_named(local):
    add(local, 5, [1])
    [file] = Path(local.address.name).glob("_varve/state/*.json")
    file.unlink()
    with pytest.raises(RunError, match=f"{file} is missing: it holds the version"):
        local.state(FEATURE_SET)


def test_restore_takes_the_state_back(table):
    table.prepare(definition())
    add(table, 1, [1])
    add(table, 2, [2])
    add(table, 3, [3])
    version_of(table).restore(2)
    assert live_keys(table) == [1, 2]
    assert table.state(FEATURE_SET) == state(2)
    version_of(table).restore(3)
    assert table.state(FEATURE_SET) == state(3)
    version_of(table).restore(1)
    again = change(table, 3, [write_file(table, feature_rows([2, 3]))])
    assert table.state(FEATURE_SET) == state(1)
    assert table.commit(again) == 7
    assert table.state(FEATURE_SET) == state(3)
    version_of(table).restore(0)
    assert table.state(FEATURE_SET) is None
