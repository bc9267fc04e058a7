"""Types of Delta's columns in Arrow, and values of its partitions as the log writes them.

Knows nothing of files. Invariants: one Arrow type for each type of Delta: string, binary and list, never views or large
ones; a value of a partition is the same text for every file that has it.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from varve.errors import JobError


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """The columns with the types that `Pin.schema` and `Table.read` have; their metadata is dropped."""
    return pa.schema([pa.field(field.name, plain_type(field.type), field.nullable) for field in schema])


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type for all kinds of strings, of binaries and of lists."""
    if pa.types.is_string_view(kind) or pa.types.is_large_string(kind):
        return pa.string()
    if pa.types.is_binary_view(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return pa.binary()
    if pa.types.is_struct(kind):
        return pa.struct([_plain_field(kind.field(index)) for index in range(kind.num_fields)])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(_plain_field(kind.value_field))
    return kind


def stored_schema(schema: pa.Schema, name: str) -> pa.Schema:
    """The columns of a table that is created.

    Raises:
        JobError: Delta has no such type, or readers of tables fail on it.
    """
    for field in schema:
        if refused := _refused(field.type):
            msg = (
                f"output.table: column {field.name!r} of type {field.type} cannot be a column of the Delta table {name}"
                f": Delta has no {refused}. Expected float32 vectors: set `dtype: float32`"
            )
            raise JobError(msg)
    return pa.schema([pa.field(field.name, plain_type(field.type)) for field in schema])


def encode_partition(values: Sequence[Any]) -> str:
    """JSON of the values of a file's partition, each as text or null."""
    return json.dumps([_as_text(value) for value in values])


def decode_partition(partition: str, columns: Sequence[str]) -> dict[str, str | None]:
    """Partition column → its value as text; those of other formats may be numbers."""
    return {name: _as_text(value) for name, value in zip(columns, json.loads(partition), strict=True)}


def partition_column(value: str | None, kind: pa.DataType, num_rows: int) -> pa.Array:
    """(num_rows,) of the type: the value of a partition column in each row."""
    if value is None:
        return pa.nulls(num_rows, kind)
    if pa.types.is_binary(kind):
        scalar = pa.scalar(value.encode(), kind)
    elif pa.types.is_timestamp(kind):
        scalar = pa.scalar(_as_time(value, kind), kind)
    else:
        scalar = pa.scalar(value).cast(kind)
    return pa.repeat(scalar, num_rows)


def _plain_field(field: pa.Field) -> pa.Field:
    return pa.field(field.name, plain_type(field.type), field.nullable)


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value or None  # an empty string is null in Delta
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, bytes):
        return value.decode() or None
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S.%f")
    return str(value)


def _as_time(value: str, kind: Any) -> datetime:
    time = datetime.fromisoformat(value)
    if kind.tz is None:
        return time
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _refused(kind: pa.DataType) -> str:
    """Name of the type within this one that a table cannot have; empty if there is none."""
    if pa.types.is_float16(kind) or pa.types.is_unsigned_integer(kind):
        return str(kind)
    if pa.types.is_struct(kind):
        return next(filter(None, (_refused(kind.field(index).type) for index in range(kind.num_fields))), "")
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return f"lists of {kind.value_type}" if pa.types.is_int8(kind.value_type) else _refused(kind.value_type)
    return ""
