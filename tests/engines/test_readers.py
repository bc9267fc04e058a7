"""Other engines read the tables that Varve commits: every row, every value, every partition value."""

import lance
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from tests.engines.feature_rows import LANGUAGES, comparable, feature_rows, publish
from tests.engines.shadow import shadow
from varve.lake.iceberg.catalog import open_catalog

EXPECTED = comparable(feature_rows())


@pytest.fixture(scope="module")
def iceberg(catalog) -> str:
    """The metadata file of an Iceberg table of Varve."""
    publish("iceberg://lake/db.read_features", 1, feature_rows())
    return open_catalog("lake").load_table("db.read_features").metadata_location


@pytest.fixture(scope="module")
def delta(tmp_path_factory) -> str:
    """The path of a Delta table of Varve."""
    path = str(tmp_path_factory.mktemp("delta") / "features")
    publish(f"delta+{path}", 1, feature_rows())
    return path


@pytest.fixture(scope="module")
def lance_dataset(tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("lance") / "docs.lance")
    lance.write_dataset(feature_rows(), path, enable_stable_row_ids=True, max_rows_per_file=1500)
    return path


def check(table: pa.Table) -> None:
    assert table.num_rows == EXPECTED.num_rows
    found = comparable(table)
    assert [name for name in EXPECTED.column_names if not found[name].equals(EXPECTED[name])] == []


def test_iceberg_in_pyiceberg_has_every_value(iceberg):
    check(open_catalog("lake").load_table("db.read_features").scan().to_arrow())


@pytest.mark.parametrize("reader", ["native", "pyiceberg"])
def test_iceberg_in_polars_has_every_value(iceberg, reader):
    check(pl.scan_iceberg(iceberg, reader_override=reader).collect().to_arrow())


def test_iceberg_in_duckdb_has_every_value(iceberg, duck):
    check(duck.table(f"SELECT * FROM iceberg_scan('{iceberg}')"))


def test_iceberg_in_spark_has_every_value(iceberg, spark):
    check(spark.table(f"SELECT * FROM {shadow(spark, iceberg)}"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_iceberg_partition_of_a_language_is_found_by_every_engine(iceberg, spark, duck, language):
    condition = "lang IS NULL" if language is None else f"lang = '{language}'"
    expected = EXPECTED.filter(pc.equal(pc.fill_null(EXPECTED["lang"], "-"), language or "-"))["doc_id"].to_pylist()
    for engine, table in ((spark, shadow(spark, iceberg)), (duck, f"iceberg_scan('{iceberg}')")):
        found = engine.sql(f"SELECT doc_id FROM {table} WHERE {condition} ORDER BY doc_id")
        assert [key for (key,) in found] == expected


def test_iceberg_rows_of_a_key_range_are_found_by_its_statistics(iceberg, spark, duck):
    expected = list(range(1200, 1300))
    for engine, table in ((spark, shadow(spark, iceberg)), (duck, f"iceberg_scan('{iceberg}')")):
        found = engine.sql(f"SELECT doc_id FROM {table} WHERE doc_id BETWEEN 1200 AND 1299 ORDER BY doc_id")
        assert [key for (key,) in found] == expected


def test_iceberg_column_renamed_by_spark_keeps_its_values(iceberg, spark):
    table = shadow(spark, iceberg)
    spark.sql(f"ALTER TABLE {table} RENAME COLUMN embedding TO vector")
    renamed = spark.table(f"SELECT doc_id, vector FROM {table}").sort_by("doc_id").combine_chunks()
    assert renamed["vector"].cast(EXPECTED["embedding"].type).equals(EXPECTED["embedding"])


def test_delta_in_delta_rs_has_every_value(delta):
    check(DeltaTable(delta).to_pyarrow_table())
    check(pa.table(DeltaTable(delta).scan()))


def test_delta_in_polars_has_every_value(delta):
    check(pl.scan_delta(delta).collect().to_arrow())


def test_delta_in_duckdb_has_every_value(delta, duck):
    check(duck.table(f"SELECT * FROM delta_scan('{delta}')"))


def test_delta_in_sail_has_every_value(delta, sail):
    check(sail.table(f"SELECT * FROM delta.`{delta}`"))


def test_delta_in_daft_has_every_value(delta, duck):
    check(duck.exported("export_daft", table=delta))


@pytest.mark.parametrize("language", LANGUAGES)
def test_delta_partition_of_a_language_is_found_by_every_engine(delta, sail, duck, language):
    condition = "lang IS NULL" if language is None else f"lang = '{language}'"
    expected = EXPECTED.filter(pc.equal(pc.fill_null(EXPECTED["lang"], "-"), language or "-"))["doc_id"].to_pylist()
    for engine, table in ((sail, f"delta.`{delta}`"), (duck, f"delta_scan('{delta}')")):
        found = engine.sql(f"SELECT doc_id FROM {table} WHERE {condition} ORDER BY doc_id")
        assert [key for (key,) in found] == expected
    chosen = pl.col("lang").is_null() if language is None else pl.col("lang") == language
    assert pl.scan_delta(delta).filter(chosen).collect()["doc_id"].sort().to_list() == expected


def test_lance_in_pylance_has_every_value(lance_dataset):
    check(lance.dataset(lance_dataset).to_table())


def test_lance_in_duckdb_has_every_value(lance_dataset, duck):
    check(duck.table(f"SELECT * FROM '{lance_dataset}'"))


@pytest.mark.parametrize("table", ["iceberg", "delta"])
def test_files_have_statistics_of_the_key_and_none_of_vectors(table, request):
    location = request.getfixturevalue(table)
    if table == "iceberg":
        files = open_catalog("lake").load_table("db.read_features").inspect.files()["file_path"].to_pylist()
        paths = [uri.removeprefix("file://") for uri in files]
    else:
        paths = [uri.removeprefix("file://") for uri in DeltaTable(location).file_uris()]
    for path in paths:
        footer = pq.read_metadata(path)
        columns = [footer.row_group(0).column(index) for index in range(footer.num_columns)]
        assert b"ARROW:schema" not in (footer.metadata or {})
        assert {column.path_in_schema for column in columns if column.is_stats_set} >= {"doc_id"}
        assert not any(column.is_stats_set for column in columns if column.path_in_schema.startswith("embedding"))
