"""The values of a kept column as colors of a map: classes, or numbers.

Invariant: classes are few and their names short, whatever the column holds.
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from varve.errors import JobError
from varve.output.run_output import Output
from varve.preprocessing.computed_columns import is_text

_MAX_CLASSES = 20
_MAX_CHARACTERS = 80
OTHER = "other"


@dataclass(frozen=True, slots=True)
class ColorLabels:
    """Labels of N rows.

    Attributes:
        classes: names, the most frequent first, and "other" last if there are more; empty for numbers.
        values: N numbers of classes, or N numbers; NaN for a row without a value.
    """

    classes: tuple[str, ...]
    values: tuple[float, ...]

    def shown(self, row: int) -> str:
        """The label of a row as text; empty for a row without a value."""
        value = self.values[row]
        if math.isnan(value):
            return ""
        return self.classes[int(value)] if self.classes else f"{value:g}"


def check_color(output: Output, name: str) -> None:
    """Check that a column can be shown as colors.

    Raises:
        JobError: the output has no such column, or it holds neither texts nor bools nor numbers.
    """
    if name not in output.other_columns:
        listed = ", ".join(output.other_columns) or "none"
        msg = f"--color {name}: the run kept no such column; it has: {listed}"
        raise JobError(msg)
    kind = output.schema.field(name).type
    if not (is_text(kind) or pa.types.is_boolean(kind) or _is_number(kind)):
        msg = f"--color {name}: it holds {kind}: expected texts, bools or numbers"
        raise JobError(msg)


def make_labels(column: pa.ChunkedArray) -> ColorLabels:
    """Labels of the values of a column that `check_color` accepts: numbers if they are floats or of many values."""
    values = _read(column)
    counts = Counter(value for value in values if value is not None)
    if _is_number(column.type) and (pa.types.is_floating(column.type) or len(counts) > _MAX_CLASSES):
        return ColorLabels((), tuple(math.nan if value is None else float(value) for value in values))
    names = [value for value, _ in counts.most_common(_MAX_CLASSES)]
    classes = (*map(_name, names), *([OTHER] if len(counts) > len(names) else []))
    codes = {value: code for code, value in enumerate(names)}
    return ColorLabels(classes, tuple(math.nan if value is None else codes.get(value, len(names)) for value in values))


def _read(column: pa.ChunkedArray) -> list[Any]:
    """Python values; texts as bytes, since a forged one may not be UTF-8; None for numbers that are not finite."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if is_text(column.type):
        return column.cast(pa.large_binary()).to_pylist()
    return [None if isinstance(value, float) and not math.isfinite(value) else value for value in column.to_pylist()]


def _name(value: Any) -> str:
    text = value[: 4 * _MAX_CHARACTERS].decode(errors="replace") if isinstance(value, bytes) else str(value)
    return text if len(text) <= _MAX_CHARACTERS else f"{text[: _MAX_CHARACTERS - 1]}…"


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)
