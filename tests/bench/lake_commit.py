"""Seconds that a driver needs for commits of a feature table in Iceberg: a change of many files, and no change.

    python tests/bench/lake_commit.py [FILES]

The catalog is on sqlite, the files are on disk. The data files need not exist: no commit opens one.
"""

import os
import sys
import tempfile
import time

import pyarrow as pa
from pyiceberg.catalog import load_catalog

from varve.config.table_address import parse_table_address
from varve.lake.iceberg.iceberg_table import IcebergTable
from varve.lake.table import Change, Definition, NewFile, PartitionField, State

COLUMNS = pa.schema(
    [("doc_id", pa.int64()), ("lang", pa.string()), ("text_hash", pa.binary(16)), ("embedding", pa.list_(pa.float32()))]
)
FEATURE_SET, SOURCE = "f5" * 32, "source"
PARTITIONS = 40


def main(num_files: int) -> None:
    """Print one line for each step."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PYICEBERG_CATALOG__BENCH__TYPE"] = "sql"
        os.environ["PYICEBERG_CATALOG__BENCH__URI"] = f"sqlite:///{folder}/catalog.db"
        os.environ["PYICEBERG_CATALOG__BENCH__WAREHOUSE"] = f"file://{folder}/warehouse"
        settings = {"type": "sql", "uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"file://{folder}/warehouse"}
        load_catalog("bench", **settings).create_namespace("db")
        table = IcebergTable(parse_table_address("iceberg://bench/db.features"))
        partition = (PartitionField("lang", "lang"),)
        table.prepare(Definition(FEATURE_SET, SOURCE, "doc_id", COLUMNS, partition))
        first = Change(None, _state(1), [_file(table.folder, index) for index in range(num_files)])
        _timed(f"stage {num_files} files", lambda: table.stage(first))
        head = _timed("commit", lambda: table.commit(first))
        files = _timed("list the files", lambda: table.files(head, "doc_id"))
        _timed("state, from the same process", lambda: table.state(FEATURE_SET))
        _timed("commit a state without files", lambda: table.commit(Change(head, _state(2))))
        added = [_file(table.folder, index) for index in range(num_files, num_files + num_files // 100)]
        change = Change(head, _state(3), added, files[:: len(files) // len(added)])
        _timed(f"stage {len(change.adds)} files in place of {len(change.removes)}", lambda: table.stage(change))
        _timed("commit", lambda: table.commit(change))


def _state(version: int) -> State:
    return State(FEATURE_SET, SOURCE, version, f"run {version}", f"/out/{version}")


def _file(folder: str, index: int) -> NewFile:
    partition = f'["{index % PARTITIONS}"]'
    path = f"{folder}/run/data/part-{index:05d}.parquet"
    return NewFile(path, 1000, 1_600_000, partition, (1000 * index, 1000 * index + 999))


def _timed(what: str, step):
    start, cpu_start = time.perf_counter(), time.process_time()
    result = step()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    print(f"{what:40} {seconds:6.2f} s, {cpu_seconds:6.2f} s of CPU")  # noqa: T201
    return result


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
