"""Feature tables for tests of Delta: their definition, files of rows, and changes."""

import os
import threading
from collections.abc import Sequence
from itertools import count

import pyarrow as pa
from deltalake import DeltaTable as DeltaVersion

from tests.lake.features import BY_LANGUAGE, COLUMNS, definition, feature_rows, state
from varve.config.table_address import parse_table_address
from varve.lake.delta.delta_table import DeltaTable
from varve.lake.table import Change, NewFile, TableFile
from varve.output.part_layout import PartLayout, encode_table_file, key_range
from varve.storage.object_store import Storage

LAYOUT = PartLayout(tuple(COLUMNS.names), "doc_id", fixed_binary=False)
_NAMES = count()
PARTITIONED = definition(partition=BY_LANGUAGE)


def new_root(request, monkeypatch) -> str:
    """An empty folder, or a bucket with its credentials in the environment, as the parameter of a fixture says."""
    if request.param == "disk":
        return str(request.getfixturevalue("tmp_path"))
    seaweed = request.getfixturevalue("seaweed")
    for name, value in seaweed.environment().items():
        monkeypatch.setenv(name, value)
    return seaweed.new_folder()


def feature_table(root: str) -> DeltaTable:
    """The handle of a table that need not exist."""
    return DeltaTable(parse_table_address(f"delta+{root}/docs_features"))


def write_file(table: DeltaTable, rows: pa.Table, partition: str = "[]") -> NewFile:
    """A file of the form that runs write, below the table's folder."""
    content = encode_table_file(rows, LAYOUT)
    name = f"0123456789abcdef/data/part-{os.getpid()}-{next(_NAMES):05d}.parquet"
    Storage(table.folder).create(name, content)
    return NewFile(f"{table.folder}/{name}", len(rows), len(content), partition, key_range(rows["doc_id"]))


def change(
    table: DeltaTable, source_version: int, adds: Sequence[NewFile] = (), removes: Sequence[TableFile] = ()
) -> Change:
    """A change for the table's current head."""
    return Change(table.pin(None).version, state(source_version), adds, removes, {"new": "3"})


def live_keys(table: DeltaTable) -> list[int]:
    """The keys in the current version, sorted, read by Varve."""
    version = table.pin(None).version
    found = [batch for file in table.files(version) for batch in table.read(version, file, ["doc_id"])]
    return sorted(key for batch in found for key in batch["doc_id"].to_pylist())


def version_of(table: DeltaTable) -> DeltaVersion:
    """The current version, as delta-rs sees it."""
    return DeltaVersion(table.address.name)


def add(table: DeltaTable, source_version: int, keys, **more) -> int:
    """Commit a file of new rows."""
    return table.commit(change(table, source_version, [write_file(table, feature_rows(keys))], **more))


def at_once(calls, errors: list) -> None:
    """Call functions in threads that start together; their errors are appended."""
    gate = threading.Barrier(len(calls))

    def wait_and_call(call):
        gate.wait(30)
        try:
            call()
        except Exception as e:  # noqa: BLE001 (asserted by the test)
            errors.append(e)

    threads = [threading.Thread(target=wait_and_call, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
