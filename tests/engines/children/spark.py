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


answer({"sql": sql, "export": export})
