"""Columns that the user's functions compute from rows, block by block.

Knows nothing of where a function comes from, of tokens or models. Invariants: a row on which a function raises costs no
other row; a value that stands in a column has its declared type and is finite, or is null since the function said so;
a result that does not fit the rows as a whole is the job's mistake and is never written.
"""

from collections.abc import Mapping, Sequence
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
from varve.preprocessing.udf.module_source import Code, tell

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
    length: int | None  # values of a vector; None for a single value
    code: Code

    @classmethod
    def of(cls, name: str, feature: Computed, folder: str) -> "ComputedColumn":
        """Find the function of a feature; it is not run.

        Raises:
            JobError: its module is not there.
        """
        code = find_code(feature.python, folder, f"features.{name}.python")
        return cls(name, feature.value_type, feature.length, code)

    @property
    def type(self) -> pa.DataType:
        """Of the column: a plain value, or a fixed-size list of them."""
        value = _TYPES[self.value_type]
        return value if self.length is None else pa.list_(value, self.length)

    @property
    def type_name(self) -> str:
        """The type in the job's words."""
        return self.value_type if self.length is None else f"{self.value_type}[{self.length}]"

    @property
    def row_bytes(self) -> int | None:
        """Bytes of one row's value; None for strings."""
        value = _TYPES[self.value_type]
        return None if pa.types.is_string(value) else (self.length or 1) * -(-value.bit_width // 8)

    def load(self) -> None:
        """Import the function's module now and not with the first rows.

        Raises:
            JobError: it can't be imported, or has no such function.
        """
        load(self.code, f"features.{self.name}.python")

    def compute(self, rows: pa.RecordBatch) -> tuple[pa.Array, Reasons]:
        """The values of rows, in one call of the function where it raises on none of them.

        Where it raises, the rows are cut in two until those on which it does stand alone.

        Args:
            rows: with the text columns and those that the job keeps.

        Returns:
            (R,) values of the column's type, and the reasons of the rows whose value is null for a reason.

        Raises:
            RunError: the result has another length or type than it should.
        """
        try:
            values = self._conform(self._call(rows), len(rows))
        except VarveError:
            raise
        except (Exception, SystemExit) as e:  # noqa: BLE001 (their code, their errors)
            if len(rows) == 1:
                return pa.nulls(1, self.type), {0: f"{self.name}: {tell(e, self.code)}"}
            middle = len(rows) // 2
            first, at_first = self.compute(rows.slice(0, middle))
            last, at_last = self.compute(rows.slice(middle))
            return pa.concat_arrays([first, last]), at_first | {middle + row: why for row, why in at_last.items()}
        unfit = _unfit(values)
        fit = np.ones(len(rows), np.bool_)
        fit[list(unfit)] = False
        return blank(values, fit), {row: f"{self.name}: {why}" for row, why in unfit.items()}

    def _call(self, rows: pa.RecordBatch) -> Any:
        return load(self.code, f"features.{self.name}.python")(rows)

    def _conform(self, result: Any, num_rows: int) -> pa.Array:
        """The result as an array of the column's type; what fails for a row's value raises Arrow's own errors."""
        values = self._to_array(result, num_rows)
        if len(values) != num_rows:
            self._refuse(f"{len(values)} values for {num_rows} rows")
        if not _casts(values.type, self.type):
            self._refuse(_shown(values.type))
        # Real numbers are rounded to the type; of whole numbers those that do not fit are errors.
        rounds = pa.types.is_floating(_TYPES[self.value_type])
        return values.cast(self.type, safe=not rounds) if values.type != self.type else values

    def _to_array(self, result: Any, num_rows: int) -> pa.Array:
        match result:
            case pa.ChunkedArray():
                return pa.concat_arrays(result.chunks) if result.num_chunks else pa.array([], result.type)
            case pa.Array():
                return result
            case np.ndarray():
                if result.ndim != (1 if self.length is None else 2) or result.shape[1:] not in {(), (self.length,)}:
                    self._refuse(f"a numpy array of shape {result.shape} for {num_rows} rows")
                # Copied: the function may use its buffer again.
                flat = pa.array(result.reshape(-1).copy())
                return flat if self.length is None else pa.FixedSizeListArray.from_arrays(flat, self.length)
            case list():
                return pa.array(result)
        return self._refuse(f"a {type(result).__name__}")

    def _refuse(self, got: str) -> NoReturn:
        msg = (
            f"features.{self.name}: {self.code.name} returned {got}, expected a pyarrow array, numpy array or list "
            f"with one {self.type_name} for each row"
        )
        raise RunError(msg)


def find_computed(features: Mapping[str, Computed], folder: str) -> tuple[ComputedColumn, ...]:
    """The computed columns of a job, in its order.

    Raises:
        JobError: a module is not there.
    """
    return tuple(ComputedColumn.of(name, feature, folder) for name, feature in features.items())


def compute_columns(
    columns: Sequence[ComputedColumn], block: pa.Table, reasons: list[str | None]
) -> dict[str, pa.Array]:
    """The computed columns of a block.

    A function sees only rows that have no reason against them, those of the columns before it included.

    Args:
        columns: to compute.
        block: its rows.
        reasons: why rows can't be encoded, one for each row; those on which a function raises are added.

    Returns:
        name → (R,) values, null where there is a reason.
    """
    values: dict[str, pa.Array] = {}
    for column in columns:
        good = np.fromiter((reason is None for reason in reasons), np.bool_, len(reasons))
        rows = np.flatnonzero(good)
        if not len(rows):
            values[column.name] = pa.nulls(len(reasons), column.type)
            continue
        found, failed = column.compute(as_batch(block if len(rows) == len(block) else block.filter(pa.array(good))))
        for row, why in failed.items():
            reasons[rows[row]] = why
        values[column.name] = found if len(rows) == len(block) else _spread(found, good)
    return values


def _spread(values: pa.Array, good: NDArray[np.bool_]) -> pa.Array:
    """The values of the good rows as those of all rows, null for the others."""
    at = np.cumsum(good, dtype=np.int64) - 1
    return values.take(pa.array(at, mask=~good))


def blank(values: pa.Array, good: NDArray[np.bool_]) -> pa.Array:
    """The values with null for rows that are not good after all."""
    return values if good.all() else values.take(pa.array(np.arange(len(good)), mask=~good))


def as_batch(rows: pa.Table) -> pa.RecordBatch:
    """What a function is given: one record batch."""
    return rows.combine_chunks().to_batches()[0]


def _casts(given: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether values of a type may be meant for another: the same kind, or whole numbers for real ones."""
    if pa.types.is_fixed_size_list(wanted):
        if pa.types.is_fixed_size_list(given):
            return given.list_size == wanted.list_size and _casts(given.value_type, wanted.value_type)
        is_list = pa.types.is_list(given) or pa.types.is_large_list(given)
        return is_list and _casts(given.value_type, wanted.value_type)
    if pa.types.is_null(given):
        return True
    if pa.types.is_floating(wanted):
        return pa.types.is_floating(given) or pa.types.is_integer(given)
    kinds = (pa.types.is_integer, pa.types.is_boolean, is_text)
    return any(kind(given) and kind(wanted) for kind in kinds)


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds strings, as they are or by a dictionary."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _shown(kind: pa.DataType) -> str:
    return f"values of type {kind}"


def _unfit(values: pa.Array) -> Reasons:
    """Rows whose value is none to be written: NaN, infinite, or a vector that lacks a value."""
    length = 1
    flat, there = values, values.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_fixed_size_list(values.type):
        # `flatten` leaves null rows out.
        flat, length = values.flatten(), values.type.list_size
    elif pa.types.is_floating(values.type):
        flat = values.drop_null()
    else:
        return {}
    rows = np.flatnonzero(there)
    lacking = flat.is_null().to_numpy(zero_copy_only=False).reshape(-1, length).any(axis=1)
    unfit = {int(rows[at]): "a value of its vector is null" for at in np.flatnonzero(lacking)}
    if pa.types.is_floating(flat.type):
        numbers = pc.fill_null(flat, 0).to_numpy(zero_copy_only=False)
        for at in np.flatnonzero(~np.isfinite(numbers).reshape(-1, length).all(axis=1)):
            unfit.setdefault(int(rows[at]), "the result is not finite; return null where there is no value")
    return unfit
