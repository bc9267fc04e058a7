"""Compares the kept columns of a row of the output with the row of the source, and whether its text is null.

Knows nothing of where rows come from. The row of the source is written as Parquet and read back, since Parquet stores
some types as others (seconds as milliseconds). Invariant: values are equal only if they are the same, NaN included.
"""

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from varve.monitoring.row_errors import count_errors
from varve.output.valid_text import replace_invalid

_SHOWN_CHARACTERS = 60


def compare_kept(names: Sequence[str], stored: pa.Table, row: pa.Table) -> dict[str, str]:
    """Compare one row.

    Args:
        names: of the kept columns.
        stored: the row of the output.
        row: the row of the source.

    Returns:
        column → description of the difference, for columns that differ.
    """
    expected = _as_stored(replace_invalid(row.select(names))) if names else row.select([])
    failures = {}
    for name in names:
        if name not in stored.column_names:
            failures[name] = "is missing in the output, and the job keeps it"
        elif failure := _difference(stored[name].combine_chunks(), expected[name].combine_chunks()):
            failures[name] = failure
    return failures


def compare_null(text_columns: Sequence[str], stored: pa.Table, row: pa.Table) -> dict[str, str]:
    """Compare whether the text of a row is null in the source with what its column `error` says.

    Returns:
        {"error": description of the difference}; empty if both agree.
    """
    is_null = any(not row[name][0].is_valid for name in text_columns)
    if count_errors(stored["error"]).null_texts and not is_null:
        return {"error": f"is {_short(stored['error'][0].as_py())}, but the text is not null in the source"}
    if is_null and not stored["error"][0].is_valid:
        return {"error": "is null, but the text is null in the source"}
    return {}


def _as_stored(row: pa.Table) -> pa.Table:
    buffer = io.BytesIO()
    pq.write_table(row, buffer)
    return pq.read_table(pa.BufferReader(buffer.getvalue()))


def _difference(got: pa.Array, want: pa.Array) -> str | None:
    if got.type != want.type:
        return f"is of type {got.type}, in the source {want.type}"
    shown, expected = _python(got), _python(want)
    if got.equals(want) or (shown is not None and shown == expected):
        return None
    return f"is {_short(shown)}, in the source {_short(expected)}"


def _python(values: pa.Array) -> str | None:
    """The value as Python writes it, where NaN equals NaN; None if Python has no such value."""
    try:
        return repr(values[0].as_py())
    except (ValueError, ArithmeticError, ImportError):  # for example a time with nanoseconds
        return None


def _short(text: str | None) -> str:
    text = "another value" if text is None else text
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
