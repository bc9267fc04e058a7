"""The data files of a version of a Delta table, and their live rows.

Knows nothing of commits. Invariants: a file's task holds all that reading needs, so workers don't load the log; rows
come in the order of the file without those of its deletion vector; only the bytes of the columns that are read are
fetched.
"""

import hashlib
import json
import posixpath
import struct
import zlib
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable as DeltaVersion
from deltalake.exceptions import DeltaError
from numpy.typing import NDArray

from varve.config.base import local_path
from varve.errors import JobError, RunError, one_line
from varve.lake.delta.column_types import decode_partition, encode_partition, partition_column, plain_schema
from varve.lake.delta.log import clean, library_errors, retried
from varve.lake.table import TableFile, VersionExpiredError
from varve.storage.object_file import MissingObjectError, ObjectFile
from varve.storage.object_store import Storage

_BATCH_ROWS = 4096
_BUFFER_BYTES = 2**21  # of each column whose pages are read one by one
_HEADER = struct.Struct("<I")  # length of the columns in a task


def list_files(name: str, version: DeltaVersion, key: str | None) -> list[TableFile]:
    """The files of a version, sorted by path; see `Table.files`."""
    with library_errors(name, "read"):
        actions = retried(lambda: pa.table(version.get_add_actions(flatten=True)))
        masks = _masks(version)
        columns = _encode_columns(version)
    partition_by = version.metadata().partition_columns
    values = [_column(actions, f"partition.{column}") for column in partition_by]
    least, greatest = _column(actions, f"min.{key}"), _column(actions, f"max.{key}")
    paths = [absolute_path(name, path) for path in _column(actions, "path")]
    if unknown := sorted(masks.keys() - set(paths)):
        msg = f"delta+{name}: {unknown[0]} has a deletion vector and is not a file of version {version.version()}"
        raise RunError(msg)
    sizes, rows = _column(actions, "size_bytes"), _column(actions, "num_records")
    found = []
    for index, path in enumerate(paths):
        mask = masks.get(path)
        found.append(
            TableFile(
                path=path,
                identity=path if mask is None else f"{path}#{hashlib.sha256(mask.tobytes()).hexdigest()[:32]}",
                num_rows=_live_rows(rows[index], mask),
                file_bytes=sizes[index],
                partition=encode_partition([column[index] for column in values]),
                key_range=_key_range(least[index], greatest[index]),
                task=columns if mask is None else columns + _encode_mask(mask),
            )
        )
    return sorted(found, key=lambda file: file.path)


def read_file(name: str, file: TableFile, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The live rows of a file; see `Table.read`."""
    schema, partition_by, mask = _decode_task(file.task)
    values = decode_partition(file.partition, partition_by)
    types = pa.schema([schema.field(column) for column in columns])
    folder = name if file.path.startswith(f"{name}/") else posixpath.dirname(file.path)
    source = ObjectFile(Storage(folder), file.path.removeprefix(f"{folder}/"), file.file_bytes)
    row = 0
    try:
        with pq.ParquetFile(source, pre_buffer=False, buffer_size=_BUFFER_BYTES) as parquet:
            stored = [column for column in columns if column in parquet.schema_arrow.names and column not in values]
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=stored, use_threads=False):
                live = _live(mask, row, batch.num_rows)
                row += batch.num_rows
                yield _complete(batch, types, values) if live is None else _complete(batch, types, values).filter(live)
    except MissingObjectError as e:
        msg = f"{file.path} is gone: VACUUM or an application has removed it since the version was read"
        raise VersionExpiredError(msg) from e
    except (pa.ArrowException, OSError, KeyError, ValueError) as e:
        msg = f"{file.path} cannot be read: {type(e).__name__} {one_line(e)}"
        raise RunError(msg) from e


def absolute_path(name: str, path: str) -> str:
    """A path of the log as an absolute path or URI; that of a shallow clone may be one already."""
    decoded = unquote(path)
    if "://" in decoded or decoded.startswith(("/", "file:")):
        return local_path(path) if path.startswith("file:") else decoded
    return f"{name}/{decoded}"


def has_deletion_vectors(version: DeltaVersion) -> bool:
    """Whether files of the table may have deletion vectors."""
    return "deletionVectors" in (version.protocol().reader_features or ())


def is_masked(file: TableFile) -> bool:
    """Whether a file has a deletion vector."""
    return _decode_task(file.task)[2] is not None


def _column(actions: pa.Table, name: str) -> list[Any]:
    """Values of a column of the actions; nulls if no file has it."""
    return actions[name].to_pylist() if name in actions.column_names else [None] * len(actions)


def _key_range(least: Any, greatest: Any) -> tuple[Any, Any] | None:
    if least is None or greatest is None:
        return None
    # The log has times in milliseconds, cut off.
    return least, greatest + timedelta(milliseconds=1) if isinstance(greatest, datetime) else greatest


def _masks(version: DeltaVersion) -> dict[str, NDArray[np.bool_]]:
    """Path → (rows of the file or fewer,) whether each row is live; rows after the mask's end are live."""
    if not has_deletion_vectors(version):
        return {}
    masks = {}
    try:
        batches = retried(lambda: list(version.deletion_vectors()))
    except DeltaError as e:  # such as a file without the number of its rows, which the protocol demands
        msg = f"{version.table_uri}: version {version.version()} has deletion vectors that cannot be read: {clean(e)}"
        raise JobError(msg) from e
    for batch in batches:
        table = pa.table(batch)
        for path, mask in zip(table["filepath"].to_pylist(), table["selection_vector"], strict=True):
            masks[_mask_path(path)] = mask.values.to_numpy(zero_copy_only=False)
    return masks


def _mask_path(uri: str) -> str:
    """The path of a file from the URI of its mask, which is percent-encoded."""
    return local_path(uri) if uri.startswith("file:") else unquote(uri)


def _live_rows(num_rows: int | None, mask: NDArray[np.bool_] | None) -> int | None:
    return num_rows if num_rows is None or mask is None else num_rows - int(np.count_nonzero(~mask))


def _encode_columns(version: DeltaVersion) -> bytes:
    """The columns of a version and its partition columns, which are part of each file's task."""
    schema = plain_schema(pa.schema(version.schema().to_arrow()))
    partition_by = json.dumps(version.metadata().partition_columns)
    content = schema.with_metadata({"partition_by": partition_by}).serialize().to_pybytes()
    return _HEADER.pack(len(content)) + content


def _encode_mask(mask: NDArray[np.bool_]) -> bytes:
    return zlib.compress(np.packbits(~mask).tobytes())  # the padding of the last byte are live rows


def _decode_task(task: bytes) -> tuple[pa.Schema, list[str], NDArray[np.bool_] | None]:
    """(columns, partition columns, mask of live rows or None)."""
    stop = _HEADER.size + _HEADER.unpack_from(task)[0]
    schema = pa.ipc.read_schema(pa.py_buffer(task[_HEADER.size : stop]))
    packed = task[stop:]
    mask = np.unpackbits(np.frombuffer(zlib.decompress(packed), np.uint8)) == 0 if packed else None
    return schema, json.loads((schema.metadata or {})[b"partition_by"]), mask


def _live(mask: NDArray[np.bool_] | None, row: int, num_rows: int) -> pa.Array | None:
    """(num_rows,) whether the rows from `row` on are live; None if all are."""
    if mask is None:
        return None
    part = mask[row : row + num_rows]
    return pa.array(np.concatenate([part, np.ones(num_rows - len(part), bool)]))


def _complete(batch: pa.RecordBatch, types: pa.Schema, values: dict[str, str | None]) -> pa.Table:
    """The rows with all columns of the schema, of its types."""
    columns = [
        partition_column(values[field.name], field.type, batch.num_rows)
        if field.name in values
        else batch.column(field.name).cast(field.type)
        if field.name in batch.schema.names
        else pa.nulls(batch.num_rows, field.type)
        for field in types
    ]
    return pa.Table.from_arrays(columns, schema=types)
