"""Sail: SQL as of Spark over Delta tables, in a server of this process."""

from typing import Any

import pyarrow.parquet as pq
from answers import answer
from pysail.spark import SparkConnectServer
from pyspark.sql import SparkSession

server = SparkConnectServer()
server.start()
session = SparkSession.builder.remote(f"sc://127.0.0.1:{server.listening_address[1]}").getOrCreate()


def sql(text: str) -> list[list[Any]]:
    return [list(row) for row in session.sql(text).collect()]


def export(query: str, path: str) -> None:
    pq.write_table(session.sql(query).toArrow(), path)


answer({"sql": sql, "export": export})
