"""Spark with Iceberg: SQL over the tables of a Hadoop catalog `local`, whose warehouse is the first argument."""

import sys
from pathlib import Path
from typing import Any

import snowpark_connect_deps_iceberg
from answers import answer
from pyspark.sql import SparkSession

ICEBERG = "org.apache.iceberg.spark"
(JAR,) = Path(snowpark_connect_deps_iceberg.__file__).parent.glob("jars/iceberg-spark-runtime-3.5_2.12-*.jar")
SETTINGS = {
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.extraClassPath": str(JAR),
    # The optimizing compiler of Java costs more than it saves in a minute.
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.memory": "1500m",
    "spark.log.level": "ERROR",
    "spark.sql.catalog.local": f"{ICEBERG}.SparkCatalog",
    "spark.sql.catalog.local.cache-enabled": "false",
    "spark.sql.catalog.local.type": "hadoop",
    "spark.sql.catalog.local.warehouse": sys.argv[1],
    "spark.sql.catalogImplementation": "in-memory",
    "spark.sql.extensions": f"{ICEBERG}.extensions.IcebergSparkSessionExtensions",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.shuffle.partitions": "1",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}

builder = SparkSession.builder.master("local[1]")
for key, value in SETTINGS.items():
    builder = builder.config(key, value)
session = builder.getOrCreate()


def sql(text: str) -> list[list[Any]]:
    return [list(row) for row in session.sql(text).collect()]


def export(query: str, path: str) -> None:
    session.sql(query).coalesce(1).write.parquet(path)


def add_equality_deletes(table: str, path: str, partition: str, rows: int, column: int) -> None:
    """Commit a file of keys that are deleted in older files of a partition; `column`: the key's field id."""
    jvm = session._jvm  # noqa: SLF001 (Spark has no SQL for it)
    loaded = jvm.org.apache.iceberg.spark.Spark3Util.loadIcebergTable(session._jsparkSession, table)  # noqa: SLF001
    columns = session.sparkContext._gateway.new_array(jvm.int, 1)  # noqa: SLF001
    columns[0] = column
    file = jvm.org.apache.iceberg.FileMetadata.deleteFileBuilder(loaded.spec()).ofEqualityDeletes(columns)
    file = file.withPath(f"file://{path}").withFormat("parquet").withRecordCount(rows).withPartitionPath(partition)
    loaded.newRowDelta().addDeletes(file.withFileSizeInBytes(Path(path).stat().st_size).build()).commit()


answer({"sql": sql, "export": export, "add_equality_deletes": add_equality_deletes})
