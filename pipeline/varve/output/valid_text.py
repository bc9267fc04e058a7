"""Texts that every reader of Parquet accepts: bytes that are not UTF-8 are replaced.

DuckDB, polars and pandas refuse a whole file with one such text. Parquet and JSON sources may hold them.
"""

import pyarrow as pa


def replace_invalid(table: pa.Table) -> pa.Table:
    """The table, with U+FFFD instead of bytes that are not UTF-8 in its columns of texts."""
    for index, field in enumerate(table.schema):
        is_text = pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
        if is_text and not _is_valid(table.column(index)):
            contents = table.column(index).cast(pa.large_binary()).to_pylist()
            texts = [None if content is None else content.decode(errors="replace") for content in contents]
            table = table.set_column(index, field, pa.chunked_array([pa.array(texts, field.type)]))
    return table


def _is_valid(column: pa.ChunkedArray) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
