"""Converts a column's values to labels: codes of classes, or numbers.

Knows nothing of splits or models.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.errors import JobError
from varve.output.run_output import index_in
from varve.preprocessing.computed_columns import is_text
from varve.probe.data.handcrafted import decode_dictionary, to_float64

_MAX_CLASSES = 1000
# Whole numbers with more distinct values than this are quantities, not classes.
_MAX_INTEGER_CLASSES = 50
_MAX_FLOAT_CLASSES = 20


def read_labels(name: str, values: pa.ChunkedArray, task: str) -> tuple[Any, tuple[str, ...]]:
    """Labels without nulls → (int32 codes, classes), or (float32 numbers, no classes).

    Args:
        name: of the column.
        values: of the column.
        task: auto, classification or regression.

    Raises:
        JobError: the column cannot be a label of this task, or holds only one value.
    """
    values = decode_dictionary(values)
    text = is_text(values.type)
    if not text:
        numbers = to_float64(name, values)
        if task == "regression" or (task == "auto" and not _are_classes(numbers, values.type)):
            return _to_float32(name, numbers), ()
    elif task == "regression":
        msg = f"--label {name}: it holds text: expected numbers for a regression"
        raise JobError(msg)
    unique = values.unique()
    _check_classes(name, unique, len(values), text=text)
    ordered = sorted(unique.to_pylist())
    codes = index_in(values, pa.array(ordered, values.type)).to_numpy().astype(np.int32)
    return codes, tuple(_class_name(value) for value in ordered)


def _class_name(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _are_classes(numbers: NDArray[np.float64], kind: pa.DataType) -> bool:
    """Whether numbers look like codes of classes: few distinct whole numbers."""
    limit = _MAX_FLOAT_CLASSES if pa.types.is_floating(kind) else _MAX_INTEGER_CLASSES
    whole = np.all(np.isfinite(numbers)) and np.all(numbers == np.round(numbers))
    return bool(whole) and len(np.unique(numbers)) <= limit


def _to_float32(name: str, numbers: NDArray[np.float64]) -> NDArray[np.float32]:
    if np.ptp(numbers) == 0:
        msg = f"--label {name}: every row has the value {numbers[0]:g}: nothing to learn"
        raise JobError(msg)
    largest, limit = numbers[np.abs(numbers).argmax()], np.finfo(np.float32).max
    if abs(largest) > limit:
        msg = f"--label {name}: it holds {largest:g}: expected numbers up to {limit:.1e}"
        raise JobError(msg)
    return numbers.astype(np.float32)


def _check_classes(name: str, unique: pa.Array, num_rows: int, *, text: bool) -> None:
    if len(unique) < 2:
        msg = f"--label {name}: every row is of the class {unique[0].as_py()!r}: nothing to learn"
        raise JobError(msg)
    if len(unique) > _MAX_CLASSES or (text and len(unique) > max(2, num_rows // 2)):
        what = "text" if text else "numbers"
        msg = (
            f"--label {name}: it holds {what}, {len(unique):,} different values in {num_rows:,} rows, such as "
            f"{str(unique[0].as_py())[:60]!r}. Expected classes ({_MAX_CLASSES:,} at most, several rows each)"
            + ("" if text else ", or --task regression")
        )
        raise JobError(msg)
