"""A column's values as labels: codes of classes, or numbers.

Knows nothing of rows' splits or of models.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.errors import JobError
from varve.preprocessing.computed_columns import is_text
from varve.probe.data.handcrafted import as_numbers, plain
from varve.probe.data.run_output import positions

MAX_CLASSES = 1000
# Whole numbers with more different values than this are taken for amounts, not classes.
_MAX_CODES = 50
_MAX_FLOAT_CODES = 20


def read_labels(name: str, values: pa.ChunkedArray, task: str) -> tuple[Any, tuple[str, ...]]:
    """Labels without a null → (codes and classes), or (numbers and no class).

    Raises:
        JobError: the column can't be a label of this task, or holds one value only.
    """
    values = plain(values)
    kind, text = values.type, is_text(values.type)
    if not text:
        numbers = as_numbers(name, values)
        if task == "regression" or (task == "auto" and not _are_codes(numbers, kind)):
            return _amounts(name, numbers), ()
    elif task == "regression":
        msg = f"--label {name}: it holds text: expected numbers for a regression"
        raise JobError(msg)
    unique = values.unique()
    _refuse_classes(name, unique, len(values), text=text)
    order = sorted(unique.to_pylist())
    codes = positions(values, pa.array(order, kind)).to_numpy().astype(np.int32)
    return codes, tuple(_word(value) for value in order)


def _word(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _are_codes(numbers: NDArray[np.float64], kind: pa.DataType) -> bool:
    """Whether numbers look like codes of classes: few different whole ones."""
    most = _MAX_FLOAT_CODES if pa.types.is_floating(kind) else _MAX_CODES
    whole = np.all(np.isfinite(numbers)) and np.all(numbers == np.round(numbers))
    return bool(whole) and len(np.unique(numbers)) <= most


def _amounts(name: str, numbers: NDArray[np.float64]) -> NDArray[np.float32]:
    if np.ptp(numbers) == 0:
        msg = f"--label {name}: every row has {numbers[0]:g}: there is nothing to learn"
        raise JobError(msg)
    most = numbers[np.abs(numbers).argmax()]
    if abs(most) > np.finfo(np.float32).max:
        msg = f"--label {name}: it holds {most:g}: expected numbers up to {np.finfo(np.float32).max:.1e}"
        raise JobError(msg)
    return numbers.astype(np.float32)


def _refuse_classes(name: str, unique: pa.Array, rows: int, *, text: bool) -> None:
    if len(unique) < 2:
        msg = f"--label {name}: every row is of the class {unique[0].as_py()!r}: there is nothing to tell apart"
        raise JobError(msg)
    if len(unique) > MAX_CLASSES or (text and len(unique) > max(2, rows // 2)):
        what = "text" if text else "numbers"
        msg = (
            f"--label {name}: it holds {what}, {len(unique):,} different values in {rows:,} rows, such as "
            f"{str(unique[0].as_py())[:60]!r}. Expected classes ({MAX_CLASSES:,} at most, several rows each)"
            + ("" if text else ", or --task regression")
        )
        raise JobError(msg)
