"""Encodes hand-crafted columns as numbers that are put next to the vectors.

Numbers are standardised with the mean and standard deviation of the training rows; booleans are 0 or 1; strings become
one 0/1 column per category of the training rows. A missing value is replaced by the training rows' mean, and if
training rows have missing values, a further 0/1 column marks them. Knows nothing of where the columns come from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.errors import JobError
from varve.output.run_output import index_in
from varve.preprocessing.computed_columns import is_text

_MAX_CATEGORIES = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class HandCrafted:
    """The encoding of one column. Its fields are stored in model.json."""

    name: str
    kind: str  # number | boolean | category
    mean: float = 0.0
    scale: float = 1.0  # standard deviation
    categories: tuple[str, ...] = ()
    says_missing: bool = False  # adds a column that is 1 where the value is missing

    @property
    def names(self) -> list[str]:
        """Names of the encoded columns."""
        names = [f"{self.name}={category}" for category in self.categories] if self.categories else [self.name]
        return [*names, f"{self.name} is missing"] if self.says_missing else names

    def encode(self, values: pa.ChunkedArray) -> NDArray[np.float32]:
        """(R, len(names)) float32.

        Raises:
            JobError: the values are not of the kind that the encoding was fitted to.
        """
        if self.kind == "category":
            text = decode_dictionary(values).cast(pa.string())
            codes = index_in(text, pa.array(self.categories, pa.string())).to_numpy()
            encoded = (np.nan_to_num(codes, nan=-1)[:, None] == np.arange(len(self.categories))).astype(np.float32)
            missing = text.is_null().to_numpy()
        else:
            numbers = to_float64(self.name, values)
            missing = ~np.isfinite(numbers)
            numbers = np.where(missing, self.mean, numbers)
            if self.kind == "number":
                numbers = (numbers - self.mean) / self.scale
            encoded = numbers.astype(np.float32)[:, None]
        return np.hstack([encoded, missing[:, None].astype(np.float32)]) if self.says_missing else encoded


def fit_column(name: str, values: pa.ChunkedArray) -> tuple[HandCrafted | None, str]:
    """Fit the encoding of a column to the values of the training rows.

    Returns:
        (the encoding, or None if all values are the same; a note for the user, or "").

    Raises:
        JobError: the column holds neither numbers, booleans nor strings, or too many different strings.
    """
    values = decode_dictionary(values)
    if is_text(values.type):
        return _fit_categories(name, values)
    numbers = to_float64(name, values)
    known = numbers[np.isfinite(numbers)]
    num_missing = len(numbers) - len(known)
    if not len(known):
        return None, f"--with {name}: no training row has a value: left out"
    if np.ptp(known) == 0 and not num_missing:
        return None, f"--with {name}: the same value ({known[0]:g}) in every training row: left out"
    kind = "boolean" if pa.types.is_boolean(values.type) else "number"
    mean, scale = float(known.mean()), float(known.std()) or 1.0
    note = f"--with {name}: {num_missing:,} of {len(numbers):,} training rows have no value: replaced by the mean"
    encoding = HandCrafted(name=name, kind=kind, mean=mean, scale=scale, says_missing=num_missing > 0)
    return encoding, note if num_missing else ""


def _fit_categories(name: str, values: pa.ChunkedArray) -> tuple[HandCrafted | None, str]:
    counted = values.drop_null().value_counts()
    by_count = np.argsort(-counted.field("counts").to_numpy(), kind="stable")
    found = counted.field("values").take(pa.array(by_count))
    if len(found) > max(_MAX_CATEGORIES, len(values) // 2):
        msg = (
            f"--with {name}: it holds text, {len(found):,} different values in {len(values):,} training rows, such as "
            f"{found[0].as_py()[:60]!r}. Expected numbers, booleans or categories"
        )
        raise JobError(msg)
    if not len(found) or (len(found) == 1 and not values.null_count):
        return None, f"--with {name}: the same value in every training row: left out"
    # Sorted, so that the encoding does not depend on the order of the rows.
    categories = tuple(sorted(found.slice(0, _MAX_CATEGORIES).to_pylist()))
    num_ignored = len(found) - len(categories)
    note = f"--with {name}: the {num_ignored:,} rarest of {len(found):,} categories are ignored" if num_ignored else ""
    missing = values.null_count > 0
    return HandCrafted(name=name, kind="category", categories=categories, says_missing=missing), note


def encode(columns: Sequence[HandCrafted], table: pa.Table | Mapping[str, Any]) -> NDArray[np.float32]:
    """(R, K) float32 of all columns side by side; K is 0 without columns.

    Raises:
        JobError: a column is missing, or of another kind than the encoding was fitted to.
    """
    names: list[str] = list(getattr(table, "column_names", table))
    for column in columns:
        if column.name not in names:
            msg = f"the hand-crafted column {column.name!r} is missing: the columns are {', '.join(names)}"
            raise JobError(msg)
    if not columns:
        return np.empty((len(table[names[0]]) if names else 0, 0), np.float32)
    values = pa.table({column.name: table[column.name] for column in columns})
    return np.hstack([column.encode(values[column.name]) for column in columns])


def decode_dictionary(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """The values of a dictionary-encoded column as plain values; other columns as they are."""
    return values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values


def to_float64(name: str, values: pa.ChunkedArray) -> NDArray[np.float64]:
    """(R,) float64, NaN where a value is missing.

    Raises:
        JobError: the column holds no numbers.
    """
    values = decode_dictionary(values)
    kind = values.type
    numeric = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal, pa.types.is_null)
    if not any(is_kind(kind) for is_kind in numeric):
        msg = f"column {name!r} holds {kind}: expected numbers, booleans or strings"
        raise JobError(msg)
    return values.cast(pa.float64(), safe=False).to_numpy().astype(np.float64)
