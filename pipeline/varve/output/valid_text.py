"""Texts that every reader of Parquet accepts: bytes that are not UTF-8 are replaced, and refused when they are read.

DuckDB, polars and pandas refuse a whole file with one such text. Parquet and JSON sources may hold them.
"""

import pyarrow as pa


def replace_invalid(table: pa.Table) -> pa.Table:
    """The table, with U+FFFD instead of bytes that are not UTF-8 in its columns of texts."""
    for index, field in enumerate(table.schema):
        if _is_text(field.type) and not _is_valid(table.column(index)):
            contents = table.column(index).cast(pa.large_binary()).to_pylist()
            texts = [None if content is None else content.decode(errors="replace") for content in contents]
            table = table.set_column(index, field, pa.chunked_array([pa.array(texts, field.type)]))
    return table


def check_valid(table: pa.Table) -> pa.Table:
    """The same table.

    Raises:
        pa.ArrowInvalid: a text is not UTF-8.
    """
    for column in table.columns:
        if _is_text(column.type):
            column.validate(full=True)
    return table


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_valid(column: pa.ChunkedArray) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
