"""Arrow types of Iceberg columns, Iceberg types of feature columns, and field ids.

Knows nothing of files. Invariant: the Arrow type of a column does not depend on the file that it is read from.
"""

import pyarrow as pa
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.schema import Schema
from pyiceberg.types import (
    BinaryType,
    BooleanType,
    DateType,
    DecimalType,
    DoubleType,
    FixedType,
    FloatType,
    IcebergType,
    IntegerType,
    ListType,
    LongType,
    NestedField,
    StringType,
    TimestampType,
    TimestamptzType,
)

from varve.errors import JobError

_PLAIN = {
    pa.large_string(): pa.string(),
    pa.string_view(): pa.string(),
    pa.large_binary(): pa.binary(),
    pa.binary_view(): pa.binary(),
}
_SCALARS: dict[pa.DataType, IcebergType] = {
    pa.bool_(): BooleanType(),
    pa.int8(): IntegerType(),
    pa.int16(): IntegerType(),
    pa.int32(): IntegerType(),
    pa.int64(): LongType(),
    pa.float32(): FloatType(),
    pa.float64(): DoubleType(),
    pa.string(): StringType(),
    pa.binary(): BinaryType(),
    pa.date32(): DateType(),
    pa.timestamp("us"): TimestampType(),
    pa.timestamp("us", "UTC"): TimestamptzType(),
}
_UNSAFE_IN_LISTS = (pa.float16(), pa.int8(), pa.uint8())


def plain_type(column: pa.DataType) -> pa.DataType:
    """The type without variants: string, binary and list for all kinds of them."""
    if isinstance(column, pa.BaseExtensionType):
        return plain_type(column.storage_type)
    if pa.types.is_list(column) or pa.types.is_large_list(column) or pa.types.is_fixed_size_list(column):
        return pa.list_(plain_type(column.value_type))
    if pa.types.is_dictionary(column):
        return plain_type(column.value_type)
    return _PLAIN.get(column, column)


def arrow_schema(schema: Schema) -> pa.Schema:
    """The columns of a table's schema with plain types; all may be null."""
    stored = schema_to_pyarrow(schema, include_field_ids=False)
    return pa.schema([pa.field(column.name, plain_type(column.type)) for column in stored])


def iceberg_schema(columns: pa.Schema) -> Schema:
    """The schema of a feature table; its ids are provisional, `create_table` gives others.

    Raises:
        JobError: a column has a type that readers of Iceberg tables lose or fail on.
    """
    ids = iter(range(1, 1 << 30))
    fields = [NestedField(next(ids), each.name, iceberg_type(each, ids), required=False) for each in columns]
    return Schema(*fields)


def iceberg_type(column: pa.Field, ids) -> IcebergType:  # noqa: ANN001 (an iterator of ints)
    """The type of a column of a feature table.

    Args:
        column: name and type.
        ids: provisional field ids.

    Raises:
        JobError: see `iceberg_schema`.
    """
    kind = plain_type(column.type)
    if pa.types.is_list(kind):
        if kind.value_type in _UNSAFE_IN_LISTS:
            msg = (
                f"column {column.name!r} is a list of {kind.value_type}: Iceberg has no such type, and its readers "
                "fail on these files: store float32 (output.dtype: float32)"
            )
            raise JobError(msg)
        element = pa.field(column.name, kind.value_type)
        return ListType(next(ids), iceberg_type(element, ids), element_required=False)
    if pa.types.is_fixed_size_binary(kind):
        return FixedType(kind.byte_width)
    if pa.types.is_decimal128(kind):
        return DecimalType(kind.precision, kind.scale)
    if kind not in _SCALARS:
        msg = (
            f"column {column.name!r} has the type {column.type}, which a feature table in Iceberg cannot hold: drop it"
        )
        raise JobError(msg)
    return _SCALARS[kind]


def field_ids(schema: Schema) -> dict[str, int]:
    """Path of each column and list element → its field id."""
    ids: dict[str, int] = {}
    for column in schema.fields:
        path, kind = column.name, column.field_type
        ids[path] = column.field_id
        while isinstance(kind, ListType):
            path = f"{path}.element"
            ids[path] = kind.element_id
            kind = kind.element_type
    return ids
