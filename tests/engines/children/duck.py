"""DuckDB with the extensions for lake tables, and daft."""

from pathlib import Path
from typing import Any

import daft
import duckdb
import pyarrow.parquet as pq
from answers import answer

EXTENSIONS = ("httpfs", "avro", "iceberg", "delta", "lance")

connection = duckdb.connect(config={"allow_unsigned_extensions": "true"})
for name in EXTENSIONS:
    (file,) = Path(duckdb.__file__).parents[1].glob(f"duckdb_extension_{name}/extensions/*/{name}.duckdb_extension")
    connection.execute(f"LOAD '{file}'")


def sql(text: str) -> list[list[Any]]:
    found = connection.execute(text)
    return [list(row) for row in found.fetchall()] if found.description else []


def export(query: str, path: str) -> None:
    pq.write_table(connection.execute(query).to_arrow_table(), path)


def export_daft(table: str, path: str) -> None:
    pq.write_table(daft.read_deltalake(table).to_arrow(), path)


answer({"sql": sql, "export": export, "export_daft": export_daft})
