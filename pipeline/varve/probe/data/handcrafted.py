"""Hand-crafted columns → numbers beside the vectors.

Numbers are standardised with the mean and the deviation of the training rows alone; booleans are 0 or 1; strings become
one column for each category that the training rows hold. A missing value counts as the training rows' mean, and where
training rows miss values a column of its own says so. Knows nothing of where columns come from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.errors import JobError
from varve.preprocessing.computed_columns import is_text
from varve.probe.data.run_output import positions

MAX_CATEGORIES = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class HandCrafted:
    """How one column becomes numbers."""

    name: str
    kind: str  # number | boolean | category
    mean: float = 0.0
    scale: float = 1.0  # standard deviation
    categories: tuple[str, ...] = ()
    says_missing: bool = False  # a further column: 1 where the value is missing

    @property
    def names(self) -> list[str]:
        """The columns of numbers that come out."""
        first = [f"{self.name}={category}" for category in self.categories] if self.categories else [self.name]
        return first + ([f"{self.name} is missing"] if self.says_missing else [])

    def encode(self, values: pa.ChunkedArray) -> NDArray[np.float32]:
        """(R, len(names)) float32.

        Raises:
            JobError: the values are of another kind than those that this was made from.
        """
        if self.kind == "category":
            text = plain(values).cast(pa.string())
            codes = positions(text, pa.array(self.categories, pa.string())).to_numpy()
            table = (np.nan_to_num(codes, nan=-1)[:, None] == np.arange(len(self.categories))).astype(np.float32)
            missing = text.is_null().to_numpy()
        else:
            numbers = as_numbers(self.name, values)
            missing = ~np.isfinite(numbers)
            table = ((np.where(missing, self.mean, numbers) - self.mean) / self.scale).astype(np.float32)[:, None]
            if self.kind == "boolean":
                table = np.where(missing, self.mean, numbers).astype(np.float32)[:, None]
        return np.hstack([table, missing[:, None].astype(np.float32)]) if self.says_missing else table

    def to_json(self) -> dict[str, Any]:
        """For model.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Back from model.json."""
        return cls(**{**content, "categories": tuple(content["categories"])})


def learn(name: str, values: pa.ChunkedArray) -> tuple[HandCrafted | None, str]:
    """How a column becomes numbers, from the values of the training rows.

    Returns:
        (the column, or None if it says nothing; a note for the user, or "").

    Raises:
        JobError: it holds neither numbers, booleans nor strings, or strings of too many kinds.
    """
    values = plain(values)
    if is_text(values.type):
        return _learn_categories(name, values)
    numbers = as_numbers(name, values)
    finite = np.isfinite(numbers)
    lacking = int((~finite).sum())
    note = f"--with {name}: {lacking:,} of {len(numbers):,} training rows lack a value: their mean stands in"
    if not finite.any() or np.ptp(numbers[finite]) == 0:
        what = f"is {numbers[finite][0]:g} in" if finite.any() else "has no value in"
        if not (lacking and finite.any()):
            return None, f"--with {name}: {what} every training row: left out"
    kind = "boolean" if pa.types.is_boolean(values.type) else "number"
    mean, scale = float(numbers[finite].mean()), float(numbers[finite].std()) or 1.0
    return HandCrafted(name=name, kind=kind, mean=mean, scale=scale, says_missing=lacking > 0), note if lacking else ""


def _learn_categories(name: str, values: pa.ChunkedArray) -> tuple[HandCrafted | None, str]:
    counted = values.drop_null().value_counts()
    order = np.argsort(-counted.field("counts").to_numpy(), kind="stable")
    found = counted.field("values").take(pa.array(order))
    if len(found) > max(MAX_CATEGORIES, len(values) // 2):
        msg = (
            f"--with {name}: it holds text: {len(found):,} different values in {len(values):,} training rows, such as "
            f"{found[0].as_py()[:60]!r}. Expected numbers, booleans or categories"
        )
        raise JobError(msg)
    lacking = values.null_count
    if len(found) < 2 and not (lacking and len(found)):
        return None, f"--with {name}: the same in every training row: left out"
    # Sorted, so that the same values make the same columns whatever their order.
    categories = tuple(sorted(found.slice(0, MAX_CATEGORIES).to_pylist()))
    rest = len(found) - len(categories)
    note = f"--with {name}: the {rest:,} rarest of {len(found):,} categories count as none" if rest else ""
    return HandCrafted(name=name, kind="category", categories=categories, says_missing=lacking > 0), note


def encode(columns: Sequence[HandCrafted], table: pa.Table | Mapping[str, Any]) -> NDArray[np.float32]:
    """(R, K) float32 of all columns side by side; K is 0 without any.

    Raises:
        JobError: a column is not there, or of another kind.
    """
    names: list[str] = list(getattr(table, "column_names", table))
    for column in columns:
        if column.name not in names:
            msg = f"the hand-crafted column {column.name!r} is not there: there are {', '.join(names)}"
            raise JobError(msg)
    if not columns:
        return np.empty((len(table[names[0]]) if names else 0, 0), np.float32)
    return np.hstack([column.encode(_chunked(table[column.name])) for column in columns])


def plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Without a dictionary: the values themselves."""
    return values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values


def as_numbers(name: str, values: pa.ChunkedArray) -> NDArray[np.float64]:
    """(R,) float64, NaN where a value is missing.

    Raises:
        JobError: the column holds no numbers.
    """
    values = plain(values)
    kind = values.type
    fits = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    if not fits and not pa.types.is_decimal(kind) and not pa.types.is_null(kind):
        msg = f"column {name!r} holds {kind}: expected numbers, booleans or strings"
        raise JobError(msg)
    values = values.cast(pa.int8()) if pa.types.is_boolean(kind) else values
    return values.cast(pa.float64(), safe=False).to_numpy().astype(np.float64)


def _chunked(values: Any) -> pa.ChunkedArray:
    if isinstance(values, pa.ChunkedArray):
        return values
    return pa.chunked_array([values if isinstance(values, pa.Array) else pa.array(values)])
