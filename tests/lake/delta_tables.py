"""Feature tables for tests of Delta: their definition, files of rows, and changes."""

import os
import threading
from collections.abc import Iterable, Sequence
from itertools import count

import pyarrow as pa
from deltalake import DeltaTable as DeltaVersion

from varve.config.table_address import parse_table_address
from varve.lake.delta_table import DeltaTable
from varve.lake.table import Change, Definition, NewFile, PartitionField, State, TableFile
from varve.output.part_layout import PartLayout, encode_table_file, key_range
from varve.storage.object_store import Storage

FEATURE_SET, SOURCE = "f5" * 32, "6fe1-source"
COLUMNS = pa.schema(
    [
        ("lang", pa.string()),
        ("doc_id", pa.int64()),
        ("text_hash", pa.binary(16)),
        ("embedding", pa.list_(pa.float32(), 4)),
        ("num_tokens", pa.int32()),
    ]
)
LAYOUT = PartLayout(tuple(COLUMNS.names), "doc_id", fixed_binary=False)
_NAMES = count()


def definition(**changes) -> Definition:
    """The definition of a feature table without partitions, with changes."""
    return Definition(
        **{"feature_set": FEATURE_SET, "source_uuid": SOURCE, "key": "doc_id", "schema": COLUMNS} | changes
    )


PARTITIONED = definition(partition=(PartitionField("lang", "lang"),))


def new_root(request, monkeypatch) -> str:
    """An empty folder, or a bucket with its credentials in the environment, as the parameter of a fixture says."""
    if request.param == "disk":
        return str(request.getfixturevalue("tmp_path"))
    seaweed = request.getfixturevalue("seaweed")
    for name, value in seaweed.environment().items():
        monkeypatch.setenv(name, value)
    return seaweed.new_bucket()


def feature_table(root: str) -> DeltaTable:
    """The handle of a table that need not exist."""
    return DeltaTable(parse_table_address(f"delta+{root}/docs_features"))


def state(version: int, run: str = "") -> State:
    """In step with this version of the source."""
    return State(FEATURE_SET, SOURCE, version, run or f"run of {version}", f"/out/{version}")


def feature_rows(keys: Iterable[int], lang: str | None = "de") -> pa.Table:
    """Rows whose values are a function of their keys."""
    keys = list(keys)
    columns = [
        pa.array([lang] * len(keys), pa.string()),
        pa.array(keys, pa.int64()),
        pa.array([key.to_bytes(16, "big") for key in keys], pa.binary(16)),
        pa.array([[float(key)] * 4 for key in keys], COLUMNS.field("embedding").type),
        pa.array([key % 7 for key in keys], pa.int32()),
    ]
    return pa.Table.from_arrays(columns, schema=COLUMNS)


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
