"""Gives part files of lake tables the form of all other parts: lists of a fixed length, columns `shard` and `row`.

Files with a `PartLayout` hold what readers of tables understand, and their original Arrow schema in the footer, where
other readers do not look for it. Knows nothing of tables. Invariant: the restored rows are equal to the ones that were
written.
"""

import base64

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from varve.output.json_text import parse_object

SCHEMA_KEY = b"varve.schema"
PART_KEY = b"varve.part"


def encode_schema(schema: pa.Schema) -> str:
    """A schema as text for a footer."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def original_schema(footer: pq.FileMetaData) -> pa.Schema:
    """The schema with which a part was made.

    Raises:
        pa.ArrowException, ValueError, OSError: the footer does not hold one.
    """
    encoded = (footer.metadata or {}).get(SCHEMA_KEY)
    if encoded is None:
        return footer.schema.to_arrow_schema()
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(encoded, validate=True)))


def restore_columns(table: pa.Table, names: list[str], footer: pq.FileMetaData, first: int = 0) -> pa.Table:
    """Columns in the form in which they were made.

    Args:
        table: the columns among `names` that the file holds.
        names: of the columns of the result.
        footer: of the file.
        first: position in the file of the first row of the table.

    Raises:
        pa.ArrowException, KeyError, ValueError: the columns do not fit the schema.
    """
    if SCHEMA_KEY not in (footer.metadata or {}):
        return table.select(names)
    schema = original_schema(footer)
    fields = [schema.field(name) for name in names]
    added = _row_columns(footer, first, len(table)) if {"shard", "row"} & set(names) else {}
    columns = [
        table[each.name].cast(each.type) if each.name in table.column_names else added[each.name] for each in fields
    ]
    return pa.Table.from_arrays(columns, schema=pa.schema(fields, metadata=schema.metadata))


def _row_columns(footer: pq.FileMetaData, first: int, rows: int) -> dict[str, pa.Array]:
    """The columns that the name of a part gives."""
    part = parse_object((footer.metadata or {})[PART_KEY])
    start = int(part["start"]) + first
    return {
        "shard": pa.array(np.full(rows, int(part["shard"]), np.int32)),
        "row": pa.array(np.arange(start, start + rows, dtype=np.int64)),
    }
