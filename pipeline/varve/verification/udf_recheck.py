"""Compares a computed column's stored value with the value that its function returns for the row alone.

Knows nothing of where rows come from. The values differ if the function depends on the other rows of its batch, on the
clock or on random numbers, or if values were stored in the wrong rows.
"""

import numpy as np
import pyarrow as pa

from varve.output.vectors import flatten
from varve.preprocessing.computed_columns import ComputedColumn, to_record_batch

# Relative tolerance of floats: sums may be rounded differently if a row is computed alone. Other types must be equal.
_TOLERANCE = 1e-5
_SHOWN_CHARACTERS = 60


def tolerance(column: ComputedColumn) -> float:
    """The allowed relative difference, see `compare_alone`."""
    return _TOLERANCE if column.value_type.startswith("float") else 0.0


def compare_alone(column: ComputedColumn, stored: pa.Table, row: pa.Table) -> tuple[float, float, str | None]:
    """Compute the value of one row again.

    Args:
        column: to compare.
        stored: the row of the output.
        row: the row of the source.

    Returns:
        (difference relative to max(1, |value|), absolute difference, description of the failure; None if there is none)
        with the largest differences over all numbers of the value.

    Raises:
        RunError: the returned value does not have the type of the column.
    """
    got, (want, reasons) = stored[column.name].combine_chunks(), column.compute(to_record_batch(row))
    relative, max_abs = _differences(got, want)
    if not reasons and relative <= tolerance(column):
        return relative, max_abs, None
    alone = f"it fails ({reasons[0]})" if reasons else f"it returns {_shown(want)}"
    failure = (
        f"is {_shown(got)}; when {column.code.name} is given this row alone, {alone}. A value must depend on its own "
        "row only, not on other rows, random numbers or the time"
    )
    return relative, max_abs, failure


def _differences(got: pa.Array, want: pa.Array) -> tuple[float, float]:
    """(relative, absolute) difference; (1, 1) for different values that are not floats, or if one of them is null."""
    if got.equals(want):
        return 0.0, 0.0
    value_type = getattr(got.type, "value_type", got.type)
    if not pa.types.is_floating(value_type) or got.null_count or want.null_count:
        return 1.0, 1.0
    a, b = (flatten(values).astype(np.float64) for values in (got, want))
    return float((np.abs(a - b) / np.maximum(np.abs(b), 1.0)).max()), float(np.abs(a - b).max())


def _shown(values: pa.Array) -> str:
    text = repr(values[0].as_py())
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
