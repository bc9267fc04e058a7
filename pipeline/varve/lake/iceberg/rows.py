"""Reads the live rows of a data file of an Iceberg table, in batches.

pyiceberg's own scan holds all rows of a file at once, so Parquet files are read here by its rules: columns are found by
field id; one that a file lacks has the value of its identity partition, its initial default, or null; deleted positions
are left out. Other files, and columns with structs or maps, go through pyiceberg's scan. Knows nothing of versions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyiceberg.expressions import AlwaysTrue
from pyiceberg.io import FileIO
from pyiceberg.io.pyarrow import ArrowScan
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.schema import Schema
from pyiceberg.table import FileScanTask, Table
from pyiceberg.table.deletion_vector import deletion_vectors_from_puffin_file
from pyiceberg.table.puffin import PuffinFile
from pyiceberg.transforms import IdentityTransform

from varve.lake.iceberg.column_types import arrow_schema
from varve.lake.iceberg.files import data_file, decode_task
from varve.lake.table import TableFile

_BATCH_ROWS = 4096
_BUFFER_BYTES = 8 << 20  # of each column: one request to an object store
_FIELD_ID = b"PARQUET:field_id"


def read_rows(table: Table, wanted: Schema, file: TableFile) -> Iterator[pa.Table]:
    """The live rows of a file, in order, in tables of at most some thousand rows.

    Args:
        table: that has the file.
        wanted: the columns.
        file: as listed.

    Raises:
        OSError, pa.ArrowInvalid: the file cannot be read.
    """
    is_nested = any(_has_struct(each.type) for each in arrow_schema(wanted))
    if decode_task(file.task).format != FileFormat.PARQUET.value or is_nested:
        yield from _scan(table, wanted, file)
        return
    deleted = _deleted_positions(table.io, file)
    first = 0
    with table.io.new_input(file.path).open() as stream:
        for batch in _batches(table, wanted, file, stream):
            yield _live(batch, deleted, first)
            first += len(batch)


def _has_struct(column: pa.DataType) -> bool:
    while pa.types.is_list(column):
        column = column.value_type
    return pa.types.is_nested(column)


def _live(batch: pa.Table, deleted: NDArray[np.int64], first: int) -> pa.Table:
    """The rows of a batch, whose first row is row `first` of the file, without the deleted ones."""
    low, high = np.searchsorted(deleted, (first, first + len(batch)))
    if low == high:
        return batch
    is_live = np.ones(len(batch), bool)
    is_live[deleted[low:high] - first] = False
    return batch.filter(pa.array(is_live))


@dataclass(frozen=True, slots=True)
class _Column:
    """Where a column of the result comes from: a column of the file, or else one value."""

    target: pa.Field
    stored: str | None
    value: Any = None

    def of(self, batch: pa.RecordBatch) -> pa.Array:
        if self.stored is None:
            return pa.repeat(pa.scalar(self.value, self.target.type), len(batch))
        values = batch.column(self.stored)
        if isinstance(values, pa.ExtensionArray):
            values = values.storage
        # Timestamps of nanoseconds are cut to the table's microseconds, as by other readers.
        return values if values.type == self.target.type else values.cast(self.target.type, safe=False)


def _batches(table: Table, wanted: Schema, file: TableFile, stream: Any) -> Iterator[pa.Table]:
    # Pages are fetched and decoded as the batches need them: a row group of another writer may have a gigabyte of text.
    with pq.ParquetFile(stream, pre_buffer=False, buffer_size=_BUFFER_BYTES) as parquet:
        columns = _columns(table, wanted, file, parquet.schema_arrow)
        names = list(dict.fromkeys(each.stored for each in columns if each.stored is not None))
        schema = pa.schema([each.target for each in columns])
        for group in range(parquet.num_row_groups):
            for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=[group], columns=names, use_threads=False):
                yield pa.Table.from_arrays([each.of(batch) for each in columns], schema=schema)


def _columns(table: Table, wanted: Schema, file: TableFile, stored: pa.Schema) -> list[_Column]:
    ids = _stored_ids(table, stored)
    constants = _partition_values(table, file)
    columns = []
    for field, target in zip(wanted.fields, arrow_schema(wanted), strict=True):
        value = constants.get(field.field_id, field.initial_default)
        columns.append(_Column(target, ids.get(field.field_id), value))
    return columns


def _stored_ids(table: Table, stored: pa.Schema) -> dict[int, str]:
    """Field id → name of the file's column; by the table's name mapping for a file without ids."""
    ids = {int(each.metadata[_FIELD_ID]): each.name for each in stored if _FIELD_ID in (each.metadata or {})}
    if ids or (mapping := table.name_mapping()) is None:
        return ids
    by_name = {name: field.field_id for field in mapping for name in field.names}
    return {number: name for name in stored.names if (number := by_name.get(name)) is not None}


def _partition_values(table: Table, file: TableFile) -> dict[int, Any]:
    task = decode_task(file.task)
    spec = table.specs()[task.spec_id]
    record = data_file(file, table.specs(), table.schema()).partition
    values = {
        each.source_id: record[index]
        for index, each in enumerate(spec.fields)
        if isinstance(each.transform, IdentityTransform)
    }
    return {source: value for source, value in values.items() if value is not None}


def _deleted_positions(io: FileIO, file: TableFile) -> NDArray[np.int64]:
    """(deleted rows,) positions in the file, ascending."""
    found = [_read_positions(io, path, kind, file.path) for path, kind in decode_task(file.task).deletes]
    return np.unique(np.concatenate([np.empty(0, np.int64), *found]))


def _read_positions(io: FileIO, path: str, kind: str, data_path: str) -> NDArray[np.int64]:
    with io.new_input(path).open() as stream:
        if kind == FileFormat.PUFFIN.value:
            vectors = deletion_vectors_from_puffin_file(PuffinFile(stream.read()))
            found = [each.to_vector() for each in vectors if each.referenced_data_file == data_path]
        elif kind == FileFormat.PARQUET.value:
            filters = [("file_path", "==", data_path)]
            found = [pq.read_table(stream, columns=["pos"], filters=filters)["pos"]]
        else:
            msg = f"{path} is a delete file of format {kind}: expected Parquet or Puffin"
            raise OSError(msg)
    return np.concatenate([np.empty(0, np.int64), *(each.to_numpy().astype(np.int64) for each in found)])


def _scan(table: Table, wanted: Schema, file: TableFile) -> Iterator[pa.Table]:
    record = data_file(file, table.specs(), table.schema())
    deletes = {_delete_file(path, kind) for path, kind in decode_task(file.task).deletes}
    scan = ArrowScan(table.metadata, table.io, wanted, AlwaysTrue())
    schema = arrow_schema(wanted)
    for batch in scan.to_record_batches([FileScanTask(record, delete_files=deletes)]):
        whole = pa.Table.from_batches([batch]).cast(schema)
        yield from (whole.slice(start, _BATCH_ROWS) for start in range(0, len(whole), _BATCH_ROWS))


def _delete_file(path: str, kind: str) -> DataFile:
    content = DataFileContent.POSITION_DELETES
    return DataFile.from_args(content=content, file_path=path, file_format=FileFormat(kind))
