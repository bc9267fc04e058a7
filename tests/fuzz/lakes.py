"""Targets: the logs and metadata of lake tables, read as sources."""

import os
from pathlib import Path
from random import Random
from unittest.mock import patch
from uuid import UUID

import pyarrow as pa
from deltalake import DeltaTable as DeltaVersion
from deltalake import write_deltalake
from pyiceberg.catalog import load_catalog
from pyiceberg.table import Table

from tests.fuzz.target import Target
from varve.config.table_address import parse_table_address
from varve.lake.delta.delta_table import DeltaTable
from varve.lake.iceberg.iceberg_table import IcebergTable

_COLUMNS = ("doc_id", "lang", "body")


def _rows(start: int) -> pa.Table:
    keys = range(start, start + 6)
    return pa.table(
        {"doc_id": pa.array(keys, pa.int64()), "lang": ["de", "en"] * 3, "body": [f"text {key}" for key in keys]}
    )


def _make_delta(folder: Path) -> None:
    write_deltalake(str(folder), _rows(0), partition_by=["lang"])
    write_deltalake(str(folder), _rows(6), mode="append")
    DeltaVersion(str(folder)).delete("doc_id = 3")
    DeltaVersion(str(folder)).create_checkpoint()
    write_deltalake(str(folder), _rows(12), mode="append")


def _read_delta(folder: Path, _name: str) -> None:
    _read(DeltaTable(parse_table_address(f"delta+{folder}")))


def use_catalog(folder: Path) -> dict[str, str]:
    """Let `iceberg://fuzz/...` be a catalog in a folder; returns its properties."""
    properties = {"uri": f"sqlite:///{folder}/catalog.db", "type": "sql", "warehouse": f"file://{folder}/warehouse"}
    os.environ.update({f"PYICEBERG_CATALOG__FUZZ__{key.upper()}": value for key, value in properties.items()})
    return properties


def make_catalog(folder: Path, rows: pa.Table) -> Table:
    """A table db.docs in a new catalog in a folder."""
    catalog = load_catalog("fuzz", **use_catalog(folder))  # pyright: ignore[reportArgumentType, reportCallIssue]
    catalog.create_namespace("db")
    table = catalog.create_table("db.docs", rows.schema)
    table.append(rows)
    return table


def _make_iceberg(folder: Path) -> None:
    random = Random(0)
    with patch("uuid.uuid4", lambda: UUID(int=random.getrandbits(128), version=4)):  # each time the same names of files
        table = make_catalog(folder, _rows(0))
        table.append(_rows(6))
        table.delete("doc_id = 3")


def _read_iceberg(folder: Path, _name: str) -> None:
    use_catalog(folder)
    _read(IcebergTable(parse_table_address("iceberg://fuzz/db.docs")))


def _read(table: DeltaTable | IcebergTable) -> None:
    pin = table.pin(None)
    for file in table.files(pin.version, "doc_id"):
        for rows in table.read(pin.version, file, _COLUMNS):
            rows.validate(full=True)


_METADATA = "warehouse/**/metadata"
TARGETS = (
    Target("delta", _make_delta, ("_delta_log/*", "*.parquet", "*/*.parquet"), _read_delta, confined=True),
    Target("iceberg", _make_iceberg, (f"{_METADATA}/*.json", f"{_METADATA}/*.avro"), _read_iceberg, confined=True),
)
