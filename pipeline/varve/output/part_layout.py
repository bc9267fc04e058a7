"""How the files of a run differ from Varve's own form, so that a lake table can have them as its data files.

Readers of tables want plain files: lists without a fixed length and no `ARROW:schema` in the footer (polars refuses
others), the table's field ids (so that a rename loses no column), and no column that the table lacks. Knows nothing of
tables. Invariant: a layout changes how values are stored, never the values.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

COPY_KEY = b"varve.copy"  # of a footer: size and SHA-256 of the file without its footer
_FIELD_ID = "PARQUET:field_id"


@dataclass(frozen=True, slots=True)
class PartLayout:
    """The form of the files of one table.

    Attributes:
        columns: that are stored, in this order.
        key: column whose least and greatest value are recorded.
        field_ids: path of a column → its field id: {"embedding": 4, "embedding.element": 5}; empty for none.
        fixed_binary: whether hashes have a fixed length in Parquet; Delta knows binary values of any length only.
    """

    columns: tuple[str, ...]
    key: str
    field_ids: Mapping[str, int] = field(default_factory=dict)
    fixed_binary: bool = True

    def apply(self, table: pa.Table) -> pa.Table:
        """The rows of a table in this form; vectors are not copied."""
        fields = [self._field(table.schema.field(name)) for name in self.columns]
        columns = [table[each.name].combine_chunks() for each in fields]
        stored = [_as_type(column, each.type) for column, each in zip(columns, fields, strict=True)]
        return pa.Table.from_arrays(stored, schema=pa.schema(fields))

    def _field(self, column: pa.Field) -> pa.Field:
        return self._with_id(column.name, pa.field(column.name, self._type(column.name, column.type)))

    def _with_id(self, path: str, column: pa.Field) -> pa.Field:
        return column.with_metadata({_FIELD_ID: str(self.field_ids[path])}) if path in self.field_ids else column

    def _type(self, path: str, column: pa.DataType) -> pa.DataType:
        if pa.types.is_fixed_size_binary(column) and not self.fixed_binary:
            return pa.binary()
        if not _is_list(column):
            return column
        inner = f"{path}.element"
        element = self._with_id(inner, pa.field("element", self._type(inner, column.value_type)))
        if pa.types.is_fixed_size_list(column):
            return pa.list_(element, column.list_size)
        return pa.large_list(element) if pa.types.is_large_list(column) else pa.list_(element)


def _as_type(column: pa.Array, stored: pa.DataType) -> pa.Array:
    return column.cast(stored) if pa.types.is_fixed_size_binary(column.type) else column.view(stored)


def encode_table_file(table: pa.Table, layout: PartLayout) -> bytes:
    """The content of a Parquet file of a table: rows that are copied, not encoded again.

    Args:
        table: with at least the columns of the layout.
        layout: of the table's files.
    """
    stored = layout.apply(table)
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, stored.schema, **parquet_options(stored.schema)) as writer:
        writer.write_table(stored)
        data = buffer.getbuffer()
        record = {"data_bytes": len(data), "data_sha256": sha256(data).hexdigest()}
        data.release()
        writer.add_key_value_metadata({COPY_KEY: json.dumps(record)})
    return buffer.getvalue()


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """Arguments of `ParquetWriter`: float lists are byte-stream-split and have neither dictionary nor statistics."""
    leaves: dict[str, list[str]] = {name: [] for name in schema.names}
    for path in leaf_paths(schema):
        leaves[path.split(".")[0]].append(path)
    vectors = [name for name in schema.names if _innermost(schema.field(name).type) == pa.float32()]
    lists = [name for name in vectors if schema.field(name).type != pa.float32()]
    others = [path for name in schema.names if name not in lists for path in leaves[name]]
    return {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": others,
        "write_statistics": others,
        "column_encoding": {path: "BYTE_STREAM_SPLIT" for name in lists for path in leaves[name]},
        "store_schema": False,
    }


def _is_list(column: pa.DataType) -> bool:
    return pa.types.is_list(column) or pa.types.is_large_list(column) or pa.types.is_fixed_size_list(column)


def _innermost(column: pa.DataType) -> pa.DataType:
    while _is_list(column):
        column = column.value_type
    return column


def leaf_paths(schema: pa.Schema) -> list[str]:
    """Paths of the Parquet columns of a schema."""
    buffer = io.BytesIO()
    pq.write_table(schema.empty_table(), buffer)
    footer = pq.read_metadata(pa.BufferReader(buffer.getvalue()))
    return [footer.schema.column(index).path for index in range(footer.num_columns)]


def key_range(column: pa.ChunkedArray) -> tuple[Any, Any] | None:
    """(least, greatest) value of a key column; None without rows."""
    extremes = pc.min_max(column).as_py()  # pyright: ignore[reportAttributeAccessIssue] (made at run time)
    return None if extremes["min"] is None else (extremes["min"], extremes["max"])
