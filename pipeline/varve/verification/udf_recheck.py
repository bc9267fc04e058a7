"""A computed column's stored value against what its function gives for the row alone.

Knows nothing of where rows come from. A function that looks at the other rows of its batch, at the clock or at chance
gives another value here; so does one whose values were written to the wrong rows.
"""

import numpy as np
import pyarrow as pa

from varve.preprocessing.computed_columns import ComputedColumn, as_batch

# What a sum may differ by when its row is computed alone, as a share of the value (at least 1); others must be equal.
TOLERANCE = 1e-5
_SHOWN = 60


def no_difference(column: ComputedColumn) -> dict[str, float]:
    """The figures of a column before any row is compared."""
    tolerance = TOLERANCE if column.value_type.startswith("float") else 0.0
    return {"relative": 0.0, "max_abs": 0.0, "tolerance": tolerance}


def compare_alone(column: ComputedColumn, stored: pa.Table, row: pa.Table, figures: dict[str, float]) -> str | None:
    """Compute one row again.

    Args:
        column: to compare.
        stored: the row of the output.
        row: that of the source.
        figures: of the column; the difference is taken in.

    Returns:
        What is wrong, in words; None where the values agree.

    Raises:
        RunError: the function returns something else than its type.
    """
    got, (want, reasons) = stored[column.name].combine_chunks(), column.compute(as_batch(row))
    relative, max_abs = _differences(got, want)
    figures["relative"] = max(figures["relative"], relative)
    figures["max_abs"] = max(figures["max_abs"], max_abs)
    if not reasons and relative <= figures["tolerance"]:
        return None
    alone = f"it fails ({reasons[0]})" if reasons else f"it gives {_shown(want)}"
    return (
        f"is {_shown(got)}; when {column.code.name} is given this row alone, {alone}. A value must come from its row, "
        "not from its neighbours, chance or the time"
    )


def _differences(got: pa.Array, want: pa.Array) -> tuple[float, float]:
    """(relative, largest absolute) difference; of what is no number, or on one side null, (1, 1)."""
    if got.equals(want):
        return 0.0, 0.0
    kind = getattr(got.type, "value_type", got.type)
    if not pa.types.is_floating(kind) or got.null_count or want.null_count:
        return 1.0, 1.0
    a, b = (_flat(values).astype(np.float64) for values in (got, want))
    return float((np.abs(a - b) / np.maximum(np.abs(b), 1.0)).max()), float(np.abs(a - b).max())


def _flat(values: pa.Array) -> np.ndarray:
    flat = values.flatten() if pa.types.is_fixed_size_list(values.type) else values
    return flat.to_numpy(zero_copy_only=False)


def _shown(values: pa.Array) -> str:
    told = repr(values[0].as_py())
    return told if len(told) <= _SHOWN else f"{told[:_SHOWN]}..."
