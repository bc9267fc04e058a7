"""Maintenance of feature tables by other engines: live rows stay whole, replaced files go, staged files stay."""

import os
import time
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable

from tests.engines.feature_rows import FEATURE_SET, comparable, feature_rows, publish, write_files
from tests.engines.shadow import move_to_catalog, shadow
from varve.config.base import local_path
from varve.config.table_address import parse_table_address
from varve.lake.iceberg.catalog import open_catalog
from varve.lake.open_table import open_feature_table
from varve.lake.table import FeatureTable

DAY = 24 * 3600
ROWS = feature_rows().slice(0, 900)
# The file of German rows was replaced by one without the keys below 30.
IS_GERMAN = pc.fill_null(pc.equal(ROWS["lang"], "de"), False)
LIVE = ROWS.filter(pc.invert(pc.and_(IS_GERMAN, pc.less(ROWS["doc_id"], 30))))


def replace_a_file(address: str) -> tuple[FeatureTable, Path]:
    """Publish rows, then replace the German ones; returns (the table, a file that is no longer part of it)."""
    table = publish(address, 1, ROWS)
    (replaced,) = (f for f in table.files(table.pin(None).version) if f.partition == '["de"]')
    german = LIVE.filter(pc.fill_null(pc.equal(LIVE["lang"], "de"), False))
    publish(address, 2, german, removes=(replaced.path,))
    return table, Path(local_path(replaced.path))


def staged_files(table: FeatureTable) -> list[Path]:
    """Files of a run that has not committed yet."""
    return [Path(local_path(file.path)) for file in write_files(table, ROWS, 3)]


def age(folder: Path, days: int) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (then := time.time() - days * DAY, then))


def timestamp(days: int) -> str:
    """So many days from now, in SQL."""
    return f"TIMESTAMP '{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(time.time() + days * DAY))}'"


def check_rows(table: FeatureTable) -> None:
    """The table has the live rows and the state of the second commit."""
    version = table.pin(None).version
    read = [batch for file in table.files(version) for batch in table.read(version, file, ROWS.schema.names)]
    assert comparable(pa.concat_tables(read)).equals(comparable(LIVE))
    state = table.state(FEATURE_SET)
    assert state
    assert state.source_version == 2


def test_spark_removes_replaced_files_of_an_iceberg_table_and_no_staged_ones(spark, catalog):
    table, replaced = replace_a_file("iceberg://lake/db.maintained")
    staged = staged_files(table)
    lake = open_catalog("lake").load_table("db.maintained")
    orphan = Path(local_path(lake.location())) / "data/orphan.parquet"
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(staged[0].read_bytes())
    age(catalog, days=10)
    name = shadow(spark, lake.metadata_location).removeprefix("local.")
    now = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(time.time() + DAY))
    spark.sql(
        f"CALL local.system.expire_snapshots(table => '{name}', older_than => TIMESTAMP '{now}', retain_last => 1)"
    )
    assert not replaced.exists()
    spark.sql(f"CALL local.system.remove_orphan_files('{name}', {timestamp(days=-2)})")
    assert not orphan.exists()
    assert all(path.exists() for path in staged)
    assert comparable(spark.table(f"SELECT * FROM local.{name}")).equals(comparable(LIVE))
    move_to_catalog(spark, f"local.{name}", "db.maintained")
    check_rows(open_feature_table(table.address))


@pytest.mark.parametrize("full", [False, True], ids=["lite", "full"])
def test_delta_rs_removes_replaced_files_of_a_delta_table_and_no_fresh_staged_ones(tmp_path, full):
    address = f"delta+{tmp_path}/features"
    table, replaced = replace_a_file(address)
    staged = staged_files(table)
    path = str(tmp_path / "features")
    DeltaTable(path).vacuum(dry_run=False, full=full)
    assert replaced.exists()  # the table's retention, a week by default, has not passed
    removed = DeltaTable(path).vacuum(0, dry_run=False, enforce_retention_duration=False)
    assert [(tmp_path / "features" / unquote(name)) for name in removed] == [replaced]
    assert not replaced.exists()
    assert all(path.exists() for path in staged)
    check_rows(open_feature_table(parse_table_address(address)))


def test_full_vacuum_of_delta_rs_leaves_live_rows_whole_and_removes_old_staged_files(tmp_path):
    address = f"delta+{tmp_path}/features"
    table, replaced = replace_a_file(address)
    staged = staged_files(table)
    DeltaTable(str(tmp_path / "features")).vacuum(0, dry_run=False, enforce_retention_duration=False, full=True)
    assert not replaced.exists()
    assert not any(path.exists() for path in staged)  # the next run finds them missing and encodes them again
    check_rows(open_feature_table(parse_table_address(address)))
