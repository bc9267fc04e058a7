"""Compares the kept columns of a row of the output with the row of the source: types and values.

Knows nothing of where rows come from. The row of the source is written as Parquet and read back, since Parquet stores
some types as others (seconds as milliseconds). Invariant: values are equal only if they are the same, NaN included.
"""

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

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
