"""The PostgreSQL types of kept columns, and their values in PostgreSQL's binary format.

Invariant: a value that is read back as its Arrow type equals the value that was written; a type for which that is not
possible is refused by name.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from varve.errors import JobError

# PostgreSQL counts from 2000-01-01, Arrow from 1970-01-01.
_EPOCH_DAYS, _EPOCH_US = 10_957, 946_684_800_000_000


@dataclass(frozen=True, slots=True)
class ColumnType:
    """How a kept column is stored.

    Attributes:
        postgres: name of the type.
        arrow: type to which values are cast before they are sent.
        wire: numpy dtype of a value in the binary format; None for text and bytes, which have any length.
        epoch: Arrow's value of PostgreSQL's zero.
    """

    postgres: str
    arrow: pa.DataType
    wire: str | None
    epoch: int = 0

    def wire_values(self, values: pa.Array) -> NDArray:
        """(N,) values of a type of fixed length; those of nulls are undefined."""
        values = values.cast(self.arrow)
        if pa.types.is_boolean(self.arrow):
            values = values.cast(pa.uint8())
        elif pa.types.is_temporal(self.arrow):
            values = values.view(pa.int32() if self.arrow == pa.date32() else pa.int64())
        filled = pc.fill_null(values, self.epoch) if values.null_count else values
        found = filled.to_numpy(zero_copy_only=False)
        return (found - self.epoch).astype(self.wire) if self.epoch else found.astype(self.wire)

    def wire_bytes(self, values: pa.Array) -> pa.LargeBinaryArray:
        """(N,) values of text and bytes; nulls stay."""
        return values.cast(self.arrow).cast(pa.large_binary())


_Test = Callable[[pa.DataType], bool]
_SMALL = (pa.int8(), pa.int16(), pa.uint8())
_TYPES: tuple[tuple[_Test, Callable[[pa.DataType], ColumnType]], ...] = (
    (pa.types.is_boolean, lambda _: ColumnType("boolean", pa.bool_(), "u1")),
    (_SMALL.__contains__, lambda _: ColumnType("smallint", pa.int16(), ">i2")),
    ((pa.int32(), pa.uint16()).__contains__, lambda _: ColumnType("integer", pa.int32(), ">i4")),
    ((pa.int64(), pa.uint32()).__contains__, lambda _: ColumnType("bigint", pa.int64(), ">i8")),
    ((pa.float16(), pa.float32()).__contains__, lambda _: ColumnType("real", pa.float32(), ">f4")),
    (pa.types.is_float64, lambda _: ColumnType("double precision", pa.float64(), ">f8")),
    (pa.types.is_date, lambda _: ColumnType("date", pa.date32(), ">i4", _EPOCH_DAYS)),
    (pa.types.is_time, lambda _: ColumnType("time", pa.time64("us"), ">i8")),
    (
        lambda kind: pa.types.is_timestamp(kind) and kind.tz is None,
        lambda _: ColumnType("timestamp", pa.timestamp("us"), ">i8", _EPOCH_US),
    ),
    (
        pa.types.is_timestamp,
        lambda kind: ColumnType("timestamp with time zone", pa.timestamp("us", kind.tz), ">i8", _EPOCH_US),
    ),
    (
        lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind),
        lambda _: ColumnType("text", pa.large_string(), None),
    ),
    (
        lambda kind: pa.types.is_binary(kind) or pa.types.is_large_binary(kind),
        lambda _: ColumnType("bytea", pa.large_binary(), None),
    ),
)


def find_type(field: pa.Field) -> ColumnType:
    """The type that stores a kept column.

    Raises:
        JobError: there is none.
    """
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    for matches, make in _TYPES:
        if matches(kind):
            return make(kind)
    msg = (
        f"the kept column {field.name!r} has the type {field.type}, which the target postgresql does not store: "
        "expected bool, an integer below uint64, a float, a string, bytes, a date, a time or a timestamp. Leave it out "
        "of --keep"
    )
    raise JobError(msg)


def from_values(field: pa.Field, values: list) -> pa.Array:
    """An Arrow column of values that psycopg has returned."""
    if pa.types.is_null(field.type):
        return pa.nulls(len(values))
    stored = pa.array(values, find_type(field).arrow)
    return stored if stored.type == field.type else stored.cast(field.type)
