"""What Iceberg has as a source beyond the contract: references, evolution of columns and partitions, delete files."""

import time
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.manifest import DataFileContent
from pyiceberg.transforms import BucketTransform, DayTransform
from pyiceberg.typedef import Record
from pyiceberg.types import DoubleType, LongType

from tests.lake.backend_iceberg import Backend, catalog
from tests.lake.backends import make_backend, rows
from tests.lake.iceberg_deletes import add_delete_file, deletion_vectors, position_deletes
from varve.config.table_address import parse_table_address
from varve.errors import JobError
from varve.lake.iceberg.catalog import describe
from varve.lake.iceberg.iceberg_table import IcebergTable
from varve.lake.table import PartitionField, TableFile, VersionExpiredError


@pytest.fixture
def lake(tmp_path, monkeypatch) -> Backend:
    """A catalog on sqlite, with files on disk."""
    return make_backend("iceberg-sqlite", tmp_path, lambda: pytest.fail("no server"), monkeypatch)  # pyright: ignore[reportReturnType]


def opened(lake: Backend) -> IcebergTable:
    return IcebergTable(parse_table_address(lake.address))


def read(table: IcebergTable, version: int | None, *columns: str) -> dict[str, list]:
    """Columns of all rows, in the order of the key."""
    found = [each for file in table.files(version) for each in table.read(version, file, ["doc_id", *columns])]
    return pa.concat_tables(found).sort_by("doc_id").to_pydict()


def keys(table: IcebergTable, version: int | None) -> list[int]:
    return read(table, version)["doc_id"]


def first_key(file: TableFile) -> int:
    assert file.key_range
    return file.key_range[0]


def test_pin_by_tag_branch_digits_and_time_is_that_snapshot(lake):
    lake.create(rows(range(3)))
    first = lake.table().current_snapshot()
    lake.table().manage_snapshots().create_tag(first.snapshot_id, "v1").create_branch(
        first.snapshot_id, "work"
    ).commit()
    after_first = datetime.fromtimestamp((first.timestamp_ms + 1) / 1000, UTC)
    time.sleep(0.005)
    lake.append(rows(range(3, 5)))
    table = opened(lake)
    naive = after_first.replace(tzinfo=None).isoformat()
    for at in ("v1", "work", first.snapshot_id, str(first.snapshot_id), after_first.isoformat(), naive):
        assert table.pin(at).version == first.snapshot_id, at
    assert table.pin("main").version == table.pin(None).version != first.snapshot_id
    assert keys(table, table.pin("v1").version) == [0, 1, 2]


@pytest.mark.parametrize("at", ["v2", 5, "5", "2001-01-01"])
def test_pin_unknown_version_names_those_that_exist(lake, at):
    lake.create(rows(range(3)))
    lake.table().manage_snapshots().create_tag(lake.table().current_snapshot().snapshot_id, "v1").commit()
    with pytest.raises(JobError, match=r"main, v1.*Latest snapshots: \d+ of 20"):
        opened(lake).pin(at)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("iceberg://nowhere/db.docs", r"configured: .*lake.*PYICEBERG_CATALOG__NOWHERE__URI"),
        ("iceberg://lake/none.docs", r"namespaces of catalog lake: .*t\d+"),
        ("iceberg://lake/{namespace}.other", r"tables of t\d+: t\d+\.docs"),
    ],
)
def test_pin_missing_catalog_namespace_or_table_names_what_exists(lake, address, shown):
    lake.create(rows(range(3)))
    with pytest.raises(JobError, match=shown):
        IcebergTable(parse_table_address(address.format(namespace=lake.namespace))).pin(None)


def test_message_of_a_catalog_that_fails_has_no_password(lake, monkeypatch):
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__URI", "nodialect://user:pa55word@host/db")
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__CREDENTIAL", "client:s3cret")
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__S3__SECRET_ACCESS_KEY", "k3y")
    with pytest.raises(JobError, match="iceberg://lake: the catalog cannot be opened") as raised:
        opened(lake).pin(None)
    assert raised.value.__cause__ is None
    shown = describe(ValueError("nodialect://user:pa55word@host/db: s3cret, k3y"), "lake")
    for text in (str(raised.value), shown):
        assert not any(secret in text for secret in ("pa55word", "s3cret", "k3y"))
    assert "nodialect://user:...@host/db" in shown


def test_renamed_column_is_read_from_old_files_by_its_id(lake):
    lake.create(rows(range(3)))
    with lake.table().update_schema() as update:
        update.rename_column("body", "article")
    table = opened(lake)
    version = table.pin(None).version
    assert "article" in table.pin(version).schema.names
    assert read(table, version, "article")["article"] == ["text 0", "text 1", "text 2"]
    lake.append(rows([3]).rename_columns(["doc_id", "lang", "article"]))
    assert read(table, table.pin(None).version, "article")["article"][-1] == "text 3"
    assert "body" in table.pin(version).schema.names
    assert read(table, version, "body")["body"] == ["text 0", "text 1", "text 2"]


def test_added_and_widened_columns_are_read_from_old_files(lake):
    small = pa.schema([("doc_id", pa.int32()), ("score", pa.float32()), ("body", pa.string())])
    lake.create(pa.table([[1, 2], [0.5, 1.5], ["a", "b"]], schema=small))
    with lake.table().update_schema() as update:
        update.add_column("topic", lake.table().schema().find_type("body"))
        update.update_column("doc_id", LongType())
        update.update_column("score", DoubleType())
    table = opened(lake)
    pin = table.pin(None)
    assert (pin.schema.field("doc_id").type, pin.schema.field("score").type) == (pa.int64(), pa.float64())
    assert read(table, pin.version, "topic", "score") == {"doc_id": [1, 2], "topic": [None] * 2, "score": [0.5, 1.5]}
    assert table.files(pin.version, "doc_id")[0].key_range == (1, 2)


def test_struct_and_map_columns_are_read(lake):
    inner = pa.struct([("url", pa.string()), ("rank", pa.int64())])
    docs = pa.table({"doc_id": [1, 2], "meta": pa.array([{"url": "a", "rank": 1}, None], inner)})
    lake.create(docs)
    table = opened(lake)
    assert read(table, table.pin(None).version, "meta")["meta"] == [{"url": "a", "rank": 1}, None]


def test_bucket_partition_has_its_number_for_each_file(lake):
    lake.create(rows([]), "bucket[4]")
    bucket = BucketTransform(4).transform(LongType())
    for number in range(4):
        lake.append_file(rows(key for key in range(40) if bucket(key) == number), number)
    table = opened(lake)
    pin = table.pin(None)
    assert pin.partition == (PartitionField("doc_id_part", "doc_id", "bucket[4]"),)
    assert sorted(file.partition for file in table.files(pin.version)) == ["[0]", "[1]", "[2]", "[3]"]
    assert keys(table, pin.version) == list(range(40))


def test_day_partition_has_days_since_1970(lake):
    days = pa.array([datetime(1970, 1, 3, 5, tzinfo=UTC)], pa.timestamp("us", "UTC"))
    lake.create(pa.table({"doc_id": pa.array([1]), "at": days}).slice(0, 0))
    with lake.table().update_spec() as update:
        update.add_field("at", DayTransform(), "day")
    lake.append_file(pa.table({"doc_id": pa.array([1]), "at": days}), 2)
    table = opened(lake)
    version = table.pin(None).version
    assert [file.partition for file in table.files(version)] == ["[2]"]
    assert read(table, version, "at")["at"] == days.to_pylist()


def test_files_of_an_older_partitioning_have_no_values(lake):
    lake.create(rows(range(4)), "lang")
    with lake.table().update_spec() as update:
        update.add_identity("doc_id")
    lake.append(rows(range(4, 6)))
    table = opened(lake)
    version = table.pin(None).version
    assert sorted(file.partition for file in table.files(version)) == ['["de", 4]', '["en", 5]', "[]", "[]"]
    assert keys(table, version) == list(range(6))


def test_position_deletes_are_applied_and_change_the_identity(lake):
    lake.create(rows(range(10_000)))
    table = opened(lake)
    first = table.pin(None).version
    [before] = table.files(first)
    deleted = [0, 4095, 4096, 9999]
    add_delete_file(lake.table(), "d1.parquet", position_deletes(before.path, deleted[:2]))
    add_delete_file(lake.table(), "d2.parquet", position_deletes(before.path, deleted[1:]))
    version = table.pin(None).version
    [after] = table.files(version)
    assert after.path == before.path
    assert after.identity != before.identity
    assert (before.num_rows, after.num_rows) == (10_000, None)
    assert keys(table, version) == [key for key in range(10_000) if key not in deleted]
    assert keys(table, first) == list(range(10_000))


def test_deletion_vectors_change_the_identity_of_the_files_that_they_refer_to_only(lake):
    for start in (0, 10, 20):
        lake.append(rows(range(start, start + 10))) if start else lake.create(rows(range(10)))
    table = opened(lake)
    before = {first_key(file): file for file in table.files(table.pin(None).version, "doc_id")}
    content = deletion_vectors({before[0].path: [2], before[20].path: [0, 9]})
    add_delete_file(lake.table(), "vectors.puffin", content)
    version = table.pin(None).version
    after = {first_key(file): file for file in table.files(version, "doc_id")}
    assert {start for start in after if after[start].identity != before[start].identity} == {0, 20}
    assert after[10].num_rows == 10
    assert keys(table, version) == [key for key in range(30) if key not in {2, 20, 29}]


def test_equality_deletes_are_refused_by_name(lake):
    lake.create(rows(range(3)))
    add_delete_file(lake.table(), "eq.parquet", b"unused", DataFileContent.EQUALITY_DELETES)
    table = opened(lake)
    with pytest.raises(JobError, match="equality deletes"):
        table.files(table.pin(None).version)


def test_partition_column_that_files_lack_has_the_value_of_the_partition(lake, tmp_path):
    lake.create(rows([1]), "lang")
    [stored] = opened(lake).files(opened(lake).pin(None).version)
    path = Path(stored.path.removeprefix("file://"))
    content = pq.read_table(path)
    pq.write_table(content.drop_columns(["lang"]), path)
    table = opened(lake)
    assert read(table, table.pin(None).version, "lang", "body") == {"doc_id": [1], "lang": ["en"], "body": ["text 1"]}


def test_files_without_field_ids_are_read_by_the_name_mapping(lake, tmp_path):
    lake.create(rows([]))
    pq.write_table(rows([1, 2]), tmp_path / "foreign.parquet")
    lake.table().add_files([f"file://{tmp_path}/foreign.parquet"])
    table = opened(lake)
    assert read(table, table.pin(None).version, "body")["body"] == ["text 1", "text 2"]


def test_expired_snapshot_and_vanished_file_are_named(lake):
    lake.create(rows(range(3)))
    table = opened(lake)
    first = table.pin(None).version
    [file] = table.files(first)
    lake.update(rows([1], "new {}"))
    lake.table().maintenance.expire_snapshots().by_id(first).commit()
    with pytest.raises(VersionExpiredError, match="99"):
        table.files(99)
    Path(file.path.removeprefix("file://")).unlink()
    with pytest.raises(VersionExpiredError, match=r"\.parquet"):
        list(table.read(table.pin(None).version, file, ["doc_id"]))


def test_address_of_a_catalog_follows_the_environment(lake, tmp_path, monkeypatch):
    lake.create(rows(range(3)))
    assert opened(lake).pin(None).version
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__URI", f"sqlite:///{tmp_path}/empty.db")
    assert catalog().list_namespaces() == []
    with pytest.raises(JobError):
        opened(lake).pin(None)


def test_deletes_of_one_partition_leave_files_of_others_as_they_are(lake):
    lake.create(rows(range(10)), "lang")
    table = opened(lake)
    before = {file.partition: file for file in table.files(table.pin(None).version)}
    content = position_deletes(before['["de"]'].path, [0])
    add_delete_file(lake.table(), "d.parquet", content, partition=Record("de"))
    after = {file.partition: file for file in table.files(table.pin(None).version)}
    assert after['["en"]'].identity == before['["en"]'].identity
    assert after['["de"]'].identity != before['["de"]'].identity
    assert keys(table, table.pin(None).version) == list(range(1, 10))
