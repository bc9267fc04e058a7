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


def _catalog(folder: Path) -> None:
    os.environ["PYICEBERG_CATALOG__FUZZ__URI"] = f"sqlite:///{folder}/catalog.db"
    os.environ["PYICEBERG_CATALOG__FUZZ__TYPE"] = "sql"
    os.environ["PYICEBERG_CATALOG__FUZZ__WAREHOUSE"] = f"file://{folder}/warehouse"


def _make_iceberg(folder: Path) -> None:
    _catalog(folder)
    catalog = load_catalog(
        "fuzz", type="sql", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/warehouse"
    )
    catalog.create_namespace("db")
    random = Random(0)
    with patch("uuid.uuid4", lambda: UUID(int=random.getrandbits(128), version=4)):  # each time the same names of files
        table = catalog.create_table("db.docs", _rows(0).schema)
        table.append(_rows(0))
        table.append(_rows(6))
        table.delete("doc_id = 3")


def _read_iceberg(folder: Path, _name: str) -> None:
    _catalog(folder)
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
