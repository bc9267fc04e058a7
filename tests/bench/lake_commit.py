"""Seconds and memory that a driver needs for commits of a feature table: a change of many files, and no change.

python -m tests.bench.lake_commit [iceberg | delta] [FILES]

The catalog of Iceberg is on sqlite, the files are on disk. The data files need not exist: no commit opens one. The peak
is that of the process while a step runs; the memory before is that of the process when it begins.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyiceberg.catalog import load_catalog

from varve.config.table_address import parse_table_address
from varve.lake.open_table import open_feature_table
from varve.lake.table import Change, Definition, FeatureTable, NewFile, PartitionField, State

COLUMNS = pa.schema(
    [("doc_id", pa.int64()), ("lang", pa.string()), ("text_hash", pa.binary(16)), ("embedding", pa.list_(pa.float32()))]
)
FEATURE_SET, SOURCE = "f5" * 32, "source"
PARTITIONS = 40


def main(kind: str, num_files: int) -> None:
    """Print one line for each step."""
    with tempfile.TemporaryDirectory() as folder:
        table = _open(kind, folder)
        partition = (PartitionField("lang", "lang"),)
        table.prepare(Definition(FEATURE_SET, SOURCE, "doc_id", COLUMNS, partition))
        first = Change(table.pin(None).version, _state(1), [_file(table.folder, index) for index in range(num_files)])
        _timed(f"stage {num_files} files", lambda: table.stage(first))
        head = _timed("commit", lambda: table.commit(first))
        files = _timed("list the files", lambda: table.files(head, "doc_id"))
        _timed("state, from the same process", lambda: table.state(FEATURE_SET))
        head = _timed("commit a state without files", lambda: table.commit(Change(head, _state(2))))
        added = [_file(table.folder, index) for index in range(num_files, num_files + num_files // 100)]
        # Iceberg's head is a snapshot, which a change without files does not replace.
        change = Change(table.pin(None).version, _state(3), added, files[:: len(files) // len(added)])
        _timed(f"stage {len(change.adds)} files in place of {len(change.removes)}", lambda: table.stage(change))
        _timed("commit", lambda: table.commit(change))


def _open(kind: str, folder: str) -> FeatureTable:
    if kind == "delta":
        return open_feature_table(parse_table_address(f"delta+{folder}/features"))
    settings = {"type": "sql", "uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"file://{folder}/warehouse"}
    os.environ.update({f"PYICEBERG_CATALOG__BENCH__{name.upper()}": value for name, value in settings.items()})
    load_catalog("bench", **settings).create_namespace("db")
    return open_feature_table(parse_table_address("iceberg://bench/db.features"))


def _state(version: int) -> State:
    return State(FEATURE_SET, SOURCE, version, f"run {version}", f"/out/{version}")


def _file(folder: str, index: int) -> NewFile:
    partition = f'["{index % PARTITIONS}"]'
    path = f"{folder}/run/data/part-{index:05d}.parquet"
    return NewFile(path, 1000, 1_600_000, partition, (1000 * index, 1000 * index + 999))


def _timed(what: str, step: Callable[[], Any]) -> Any:
    before_mb = _memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
    start, cpu_start = time.perf_counter(), time.process_time()
    result = step()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    memory = f"{before_mb:,.0f} MB before, peak {_memory_mb('VmHWM'):,.0f} MB"
    print(f"{what:40} {seconds:6.2f} s, {cpu_seconds:6.2f} s of CPU, {memory}")  # noqa: T201
    return result


def _memory_mb(name: str) -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[name].split()[0]) / 1000


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "iceberg", int(sys.argv[2]) if len(sys.argv) > 2 else 10_000)
