"""Columns that the user's functions compute from rows, block by block.

Knows nothing of where a function comes from, of tokens or models. Invariants: a row for which a function raises does
not affect other rows; a stored value has the declared type and is finite, or is null because the function returned
null; a result that does not fit the block as a whole is an error of the job and is never written.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from varve.config.feature import Computed
from varve.errors import RunError, VarveError
from varve.preprocessing.udf.discovery import find_code
from varve.preprocessing.udf.loader import load
from varve.preprocessing.udf.module_source import Code, describe_error

_TYPES = {
    "bool": pa.bool_(),
    "string": pa.string(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
}
Reasons = dict[int, str]  # row → why it has no value


@dataclass(frozen=True, slots=True)
class ComputedColumn:
    """One column and its function, small enough to send to each worker."""

    name: str
    value_type: str
    length: int | None  # numbers of a vector; None for a single value
    code: Code

    @classmethod
    def of(cls, name: str, feature: Computed, folder: str) -> "ComputedColumn":
        """Find the function of a feature next to the job file in `folder`, without running its module.

        Raises:
            JobError: the function's module does not exist.
        """
        code = find_code(feature.python, folder, f"features.{name}.python")
        return cls(name, feature.value_type, feature.length, code)

    @property
    def type(self) -> pa.DataType:
        """Arrow type of the column: a single value or a fixed-size list."""
        return make_type(self.value_type, self.length)

    @property
    def type_name(self) -> str:
        """The type as a job file writes it."""
        return self.value_type if self.length is None else f"{self.value_type}[{self.length}]"

    @property
    def row_bytes(self) -> int | None:
        """Bytes of one row's value; None for strings."""
        value = _TYPES[self.value_type]
        return None if pa.types.is_string(value) else (self.length or 1) * -(-value.bit_width // 8)

    def load(self) -> Callable[[Any], Any]:
        """The function; imports its module on the first call in a process.

        Raises:
            JobError: the module cannot be imported, or has no such function.
        """
        return load(self.code, f"features.{self.name}.python")

    def compute(self, rows: pa.RecordBatch) -> tuple[pa.Array, Reasons]:
        """Compute the values of R rows with one call of the function.

        If the call raises, the rows are split in two halves until each failing row is alone.

        Args:
            rows: with the text columns and the columns that the job keeps.

        Returns:
            (R,) values of the column's type, and the reasons of failed rows, whose values are null.

        Raises:
            RunError: the result does not have the expected length or type.
        """
        try:
            values = self._conform(self.load()(rows), len(rows))
        except VarveError:
            raise
        except (Exception, SystemExit) as e:  # noqa: BLE001 (user code may raise anything)
            if len(rows) == 1:
                return pa.nulls(1, self.type), {0: f"{self.name}: {describe_error(e, self.code)}"}
            middle = len(rows) // 2
            first, first_reasons = self.compute(rows.slice(0, middle))
            second, second_reasons = self.compute(rows.slice(middle))
            shifted = {middle + row: reason for row, reason in second_reasons.items()}
            return pa.concat_arrays([first, second]), first_reasons | shifted
        invalid = _find_invalid(values)
        valid = np.ones(len(rows), np.bool_)
        valid[list(invalid)] = False
        return mask_bad_rows(values, valid), {row: f"{self.name}: {reason}" for row, reason in invalid.items()}

    def _conform(self, result: Any, num_rows: int) -> pa.Array:
        """Convert a result to an array of the column's type; a value that cannot be converted raises Arrow's error."""
        values = self._to_array(result, num_rows)
        if len(values) != num_rows:
            self._refuse(f"{len(values)} values for {num_rows} rows")
        if not _is_convertible(values.type, self.type):
            self._refuse(f"values of type {values.type}")
        # Floats are rounded to the type; integers that do not fit are errors.
        rounds = pa.types.is_floating(_TYPES[self.value_type])
        return values.cast(self.type, safe=not rounds) if values.type != self.type else values

    def _to_array(self, result: Any, num_rows: int) -> pa.Array:
        match result:
            case pa.ChunkedArray():
                return result.combine_chunks()
            case pa.Array():
                return result
            case np.ndarray():
                if result.ndim != (1 if self.length is None else 2) or result.shape[1:] not in {(), (self.length,)}:
                    self._refuse(f"a numpy array of shape {result.shape} for {num_rows} rows")
                # Copied, because the function may reuse its buffer.
                flat = pa.array(result.reshape(-1).copy())
                return flat if self.length is None else pa.FixedSizeListArray.from_arrays(flat, self.length)
            case list():
                return pa.array(result)
        return self._refuse(f"a {type(result).__name__}")

    def _refuse(self, result: str) -> NoReturn:
        msg = (
            f"features.{self.name}: {self.code.name} returned {result}, expected a pyarrow array, numpy array or list "
            f"with one {self.type_name} for each row"
        )
        raise RunError(msg)


def make_type(value_type: str, length: int | None) -> pa.DataType:
    """Arrow type of a column: of a single value, or of a vector of `length` numbers."""
    value = _TYPES[value_type]
    return value if length is None else pa.list_(value, length)


def find_computed(features: Mapping[str, Computed], folder: str) -> tuple[ComputedColumn, ...]:
    """The computed columns of a job, in its order.

    Raises:
        JobError: a function's module does not exist.
    """
    return tuple(ComputedColumn.of(name, feature, folder) for name, feature in features.items())


def compute_columns(
    columns: Sequence[ComputedColumn], block: pa.Table, reasons: list[str | None]
) -> dict[str, pa.Array]:
    """Compute the columns of a block.

    A function receives only rows without a reason, including reasons from the columns before it.

    Args:
        columns: to compute.
        block: R rows.
        reasons: (R,) why a row cannot be encoded, or None; reasons of rows for which a function fails are added.

    Returns:
        name → (R,) values, null for rows with a reason.
    """
    arrays: dict[str, pa.Array] = {}
    for column in columns:
        good = np.fromiter((reason is None for reason in reasons), np.bool_, len(reasons))
        rows = np.flatnonzero(good)
        if not len(rows):
            arrays[column.name] = pa.nulls(len(reasons), column.type)
            continue
        is_whole = len(rows) == len(block)
        values, failed = column.compute(to_record_batch(block if is_whole else block.filter(pa.array(good))))
        for row, reason in failed.items():
            reasons[rows[row]] = reason
        arrays[column.name] = values if is_whole else _expand(values, good)
    return arrays


def _expand(values: pa.Array, good: NDArray[np.bool_]) -> pa.Array:
    """Values of the good rows → values of all rows, null for the others."""
    places = np.cumsum(good, dtype=np.int64) - 1
    return values.take(pa.array(places, mask=~good))


def mask_bad_rows(values: pa.Array, good: NDArray[np.bool_]) -> pa.Array:
    """(R,) values with null for rows that are not good."""
    return values if good.all() else values.take(pa.array(np.arange(len(good)), mask=~good))


def to_record_batch(rows: pa.Table) -> pa.RecordBatch:
    """A table that is not empty as one record batch, the argument of a function."""
    return rows.combine_chunks().to_batches()[0]


def _is_convertible(given: pa.DataType, expected: pa.DataType) -> bool:
    """Whether values of a type are accepted for another: types of the same kind, and integers for floats."""
    if pa.types.is_fixed_size_list(expected):
        if pa.types.is_fixed_size_list(given):
            return given.list_size == expected.list_size and _is_convertible(given.value_type, expected.value_type)
        is_list = pa.types.is_list(given) or pa.types.is_large_list(given)
        return is_list and _is_convertible(given.value_type, expected.value_type)
    if pa.types.is_null(given):
        return True
    if pa.types.is_floating(expected):
        return pa.types.is_floating(given) or pa.types.is_integer(given)
    return any(test(given) and test(expected) for test in (pa.types.is_integer, pa.types.is_boolean, is_text))


def is_text(data_type: pa.DataType) -> bool:
    """Whether a column of this type holds strings, plain or dictionary-encoded."""
    if pa.types.is_dictionary(data_type):
        return is_text(data_type.value_type)
    return pa.types.is_string(data_type) or pa.types.is_large_string(data_type) or pa.types.is_string_view(data_type)


def _find_invalid(values: pa.Array) -> Reasons:
    """Rows whose value must not be stored: NaN, infinite, or a vector with a null."""
    length = 1
    flat, rows = values, np.flatnonzero(values.is_valid().to_numpy(zero_copy_only=False))
    if pa.types.is_fixed_size_list(values.type):
        flat, length = values.flatten(), values.type.list_size  # `flatten` skips null rows
    elif pa.types.is_floating(values.type):
        flat = values.drop_null()
    else:
        return {}
    has_null = flat.is_null().to_numpy(zero_copy_only=False).reshape(-1, length).any(axis=1)
    invalid = {int(row): "a value of its vector is null" for row in rows[has_null]}
    if pa.types.is_floating(flat.type):
        numbers = pc.fill_null(flat, 0).to_numpy(zero_copy_only=False)
        for row in rows[~np.isfinite(numbers).reshape(-1, length).all(axis=1)]:
            invalid.setdefault(int(row), "the result is not finite; return null where there is no value")
    return invalid
