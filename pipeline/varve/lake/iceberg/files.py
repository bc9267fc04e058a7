"""The data files of a snapshot of an Iceberg table, with the delete files that apply to each.

Knows nothing of rows. Invariants: the identity of a file changes when its live rows do; the task of a file holds no
credential.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pyiceberg.conversions import from_bytes
from pyiceberg.io import FileIO
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.partitioning import PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import DataScan, FileScanTask, Table
from pyiceberg.table.puffin import PuffinFile
from pyiceberg.types import NestedField, PrimitiveType

from varve.config.table_address import TableAddress
from varve.errors import JobError, RunError
from varve.lake.iceberg.avro_decoder import bounded_decoding
from varve.lake.iceberg.catalog import describe
from varve.lake.iceberg.partition import UNPARTITIONED, partition_json, partition_record
from varve.lake.table import TableFile, VersionExpiredError

_REFERENCED = "referenced-data-file"


@dataclass(frozen=True, slots=True)
class FileTask:
    """What it takes to read a file, or to remove it from the table.

    Attributes:
        format: PARQUET, ORC or AVRO.
        num_rows: with deleted ones.
        spec_id: of the partition specification by which it was written.
        partition: JSON of the values of that specification.
        deletes: (path, format) of the delete files that apply to it.
    """

    format: str
    num_rows: int
    spec_id: int
    partition: str
    deletes: tuple[tuple[str, str], ...]

    def encode(self) -> bytes:
        """As JSON."""
        fields = [self.format, self.num_rows, self.spec_id, self.partition, self.deletes]
        return json.dumps(fields, ensure_ascii=False).encode()


def decode_task(task: bytes) -> FileTask:
    """What `FileTask.encode` made."""
    kind, num_rows, spec_id, partition, deletes = json.loads(task)
    return FileTask(kind, num_rows, spec_id, partition, tuple((path, each) for path, each in deletes))


def list_files(address: TableAddress, table: Table, version: int, key: NestedField | None) -> list[TableFile]:
    """The data files of a snapshot, sorted by path.

    Args:
        address: for messages.
        table: that has the snapshot.
        version: the snapshot.
        key: column of which bounds are returned.

    Raises:
        VersionExpiredError: its metadata files are gone.
        JobError: a file has equality deletes.
        RunError: the metadata files cannot be read.
    """
    try:
        # Without a catalog, files are planned in this process, whatever the catalog offers.
        with bounded_decoding():
            tasks = list(DataScan(table.metadata, table.io, snapshot_id=version).plan_files())
        return sorted((_table_file(table, task, key) for task in tasks), key=lambda file: file.path)
    except FileNotFoundError as e:
        msg = f"{address}: snapshot {version} has expired: its manifest files are gone"
        raise VersionExpiredError(msg) from e
    except Exception as e:  # decoders of Avro, deflate and Puffin raise errors of their own for damaged files
        if isinstance(e, ValueError) and "equality deletes" in str(e):
            msg = (
                f"{address}: snapshot {version} has equality deletes, which cannot be applied: rewrite the table's "
                "files (Spark: CALL system.rewrite_data_files with 'delete-file-threshold' 1), then run the same "
                "command again"
            )
            raise JobError(msg) from e
        msg = (
            f"{address}: the manifest files of snapshot {version} cannot be read: {describe(e, address.catalog)}. "
            "Check the table with its engine, or name another version (source.at)"
        )
        raise RunError(msg) from e


def data_file(file: TableFile, specs: dict[int, PartitionSpec], schema: Schema) -> DataFile:
    """The record of a listed file without statistics, by which a commit removes it or a scan reads it.

    Args:
        file: as listed.
        specs: of the table.
        schema: of the table.
    """
    task = decode_task(file.task)
    record = partition_record(task.partition, specs[task.spec_id], schema)
    return make_record(file.path, task.num_rows, file.file_bytes, record, task.spec_id, format=FileFormat(task.format))


def make_record(path: str, num_rows: int, file_bytes: int, partition: Any, spec_id: int, **more: Any) -> DataFile:
    """The record of a data file.

    Args:
        path: absolute URI.
        num_rows: in it.
        file_bytes: its size.
        partition: record of its partition.
        spec_id: of the partition specification.
        more: `format`; other fields of `DataFile`, such as bounds.
    """
    record = DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=path,
        file_format=more.pop("format", FileFormat.PARQUET),
        partition=partition,
        record_count=num_rows,
        file_size_in_bytes=file_bytes,
        **more,
    )
    record.spec_id = spec_id
    return record


def _table_file(table: Table, task: FileScanTask, key: NestedField | None) -> TableFile:
    file, deletes = task.file, _applied(table.io, task)
    partition = partition_json(file.partition, table.specs()[file.spec_id])
    described = FileTask(file.file_format.value, file.record_count, file.spec_id, partition, deletes)
    return TableFile(
        path=file.file_path,
        identity="|".join([file.file_path, *(path for path, _ in deletes)]),
        num_rows=None if deletes else file.record_count,
        file_bytes=file.file_size_in_bytes,
        partition=partition if file.spec_id == table.spec().spec_id else UNPARTITIONED,
        key_range=_key_range(file, key) if key else None,
        task=described.encode(),
    )


def _applied(io: FileIO, task: FileScanTask) -> tuple[tuple[str, str], ...]:
    """Delete files of a task; pyiceberg attaches a Puffin file to all files of the partition of one it refers to."""
    paths: Sequence[DataFile] = sorted(task.delete_files, key=lambda each: each.file_path)
    return tuple(
        (each.file_path, each.file_format.value)
        for each in paths
        if each.file_format != FileFormat.PUFFIN or task.file.file_path in _referenced(_Puffin(io, each.file_path))
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Puffin:
    io: FileIO
    path: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Puffin) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)


@lru_cache(maxsize=1024)
def _referenced(puffin: _Puffin) -> frozenset[str]:
    """Paths of the data files that a file of deletion vectors refers to; such a file never changes."""
    with puffin.io.new_input(puffin.path).open() as stream:
        blobs = PuffinFile(stream.read()).footer.blobs
    return frozenset(blob.properties[_REFERENCED] for blob in blobs if _REFERENCED in blob.properties)


def _key_range(file: DataFile, key: NestedField) -> tuple[Any, Any] | None:
    """Bounds of a column; those of a long string may be shortened, but are bounds all the same."""
    low, high = (file.lower_bounds or {}).get(key.field_id), (file.upper_bounds or {}).get(key.field_id)
    if low is None or high is None or not isinstance(key.field_type, PrimitiveType):
        return None
    bounds = (from_bytes(key.field_type, low), from_bytes(key.field_type, high))
    return bounds if all(isinstance(bound, (int, str)) for bound in bounds) else None
