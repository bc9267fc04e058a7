"""Puts the encoded rows of a file's parts in their places among the file's other rows.

Knows nothing of the format of tables. Invariants: rows come in ascending positions; a part whose bytes differ from its
record is refused; memory is that of one part and one table of `STEP_ROWS` rows.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from varve.errors import RunError, one_line
from varve.lake.text_hash import HASH_TYPE, TEXT_HASH
from varve.output.part_file import Part, read_footer
from varve.output.part_table import PartTable
from varve.storage.object_store import Storage

STEP_ROWS = 4096
# (positions of rows in their file, ascending; the rows)
Chunk = tuple[NDArray[np.int64], pa.Table]


@dataclass(frozen=True, slots=True)
class OwnColumns:
    """The columns of one feature set in the source's own table.

    Attributes:
        features: names of the columns of the parts.
    """

    features: tuple[str, ...]

    @property
    def hash(self) -> str:
        """Column with the hash of the text that the features were computed of, 16 bytes; null: not computed yet."""
        return f"{self.features[0]}_hash"

    @property
    def error(self) -> str:
        """Column with the reason why a row has no features."""
        return f"{self.features[0]}_error"

    @property
    def names(self) -> tuple[str, ...]:
        """All columns."""
        return (*self.features, self.hash, self.error)

    @property
    def stored_names(self) -> tuple[str, ...]:
        """The same columns in parts."""
        return (*self.features, TEXT_HASH, "error")

    def schema(self, parts: pa.Schema) -> pa.Schema:
        """The columns, given the schema of the parts: vectors are fixed-size lists."""
        types = [_plain_list(parts.field(name).type) for name in self.features]
        return pa.schema([*zip(self.features, types, strict=True), (self.hash, HASH_TYPE), (self.error, pa.string())])


def _plain_list(column: pa.DataType) -> pa.DataType:
    """The type with Arrow's usual names of elements."""
    if pa.types.is_fixed_size_list(column):
        return pa.list_(_plain_list(column.value_type), column.list_size)
    return pa.list_(_plain_list(column.value_type)) if pa.types.is_list(column) else column


def part_schema(storage: Storage, parts: PartTable) -> pa.Schema | None:
    """The schema of the first part with rows; None if no part has rows.

    Raises:
        RunError: it cannot be read.
    """
    part = next((part for part in parts if part.range.num_rows), None)
    return read_footer(storage, part.name, part.file_bytes)[0].schema.to_arrow_schema() if part else None


def read_part_rows(storage: Storage, part: Part, own: OwnColumns, schema: pa.Schema) -> pa.Table:
    """The own columns of a part, of the types of a schema.

    Raises:
        RunError: the part is missing or is not what its record says.
    """
    content = storage.read(part.name)
    if content is None or hashlib.sha256(content[: part.data_bytes]).hexdigest() != part.data_sha256:
        what = "is missing" if content is None else "is damaged: its bytes differ from what the run wrote"
        msg = f"{storage.uri}/{part.name} {what}. Delete it and run the same command again"
        raise RunError(msg)
    try:
        table = pq.read_table(pa.BufferReader(content), columns=list(own.stored_names)).select(own.stored_names)
        return table.rename_columns(list(own.names)).cast(schema)
    except (pa.ArrowException, KeyError) as e:
        msg = f"{storage.uri}/{part.name} cannot be read: {one_line(e)}"
        raise RunError(msg) from e


def placed_rows(
    storage: Storage, parts: PartTable, own: OwnColumns, schema: pa.Schema, places: NDArray[np.int64]
) -> Iterator[Chunk]:
    """The rows of a shard's parts, each with its place.

    Args:
        storage: of the run.
        parts: of the shard, in order.
        own: columns.
        schema: of the own columns.
        places: (rows of the shard,) ascending.

    Raises:
        RunError: the parts do not have exactly these rows.
    """
    bounds = [0, *parts.columns["stop"].to_pylist()]
    if bounds[:-1] != parts.columns["start"].to_pylist() or bounds[-1] != len(places):
        msg = f"{storage.uri}: the parts do not have the {len(places):,} selected rows of a file of the table"
        raise RunError(msg)
    for part in parts:
        if part.range.num_rows:
            yield places[part.start : part.stop], read_part_rows(storage, part, own, schema)


class _Cursor:
    """Takes rows of chunks in ascending order of their places."""

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        self._chunks = iter(chunks)
        self._left: Chunk | None = None

    def below(self, stop: int) -> list[Chunk]:
        taken = []
        while (chunk := self._left or next(self._chunks, None)) is not None:
            places, table = chunk
            count = int(np.searchsorted(places, stop))
            taken.append((places[:count], table.slice(0, count)))
            self._left = (places[count:], table.slice(count)) if count < len(places) else None
            if self._left is not None:
                break
        return taken


def overlay_rows(
    num_rows: int, schema: pa.Schema, stored: Iterable[Chunk], new: Iterable[Chunk], step: int = STEP_ROWS
) -> Iterator[pa.Table]:
    """All rows of a file, in tables of `step` rows: the new row at a place, else the stored one, else nulls.

    Args:
        num_rows: of the file.
        schema: of the rows.
        stored: rows that the file has.
        new: rows that replace them.
        step: rows of a table.
    """
    below, above = _Cursor(stored), _Cursor(new)
    for start in range(0, num_rows, step):
        stop = min(start + step, num_rows)
        yield _combine(start, stop, schema, [*below.below(stop), *above.below(stop)])


def _combine(start: int, stop: int, schema: pa.Schema, chunks: list[Chunk]) -> pa.Table:
    """One row for each place; a later chunk replaces an earlier one."""
    rows = pa.concat_tables([schema.empty_table(), *(table for _, table in chunks)]).combine_chunks()
    index = np.full(stop - start, -1)
    first = 0
    for places, table in chunks:
        index[places - start] = np.arange(first, first + len(table))
        first += len(table)
    return rows.take(pa.array(index, mask=index < 0)).combine_chunks()


def same_bits(one: pa.Table, other: pa.Table) -> bool:
    """Whether two tables have the same nulls and the same values, floats bit by bit."""
    if one.num_rows != other.num_rows or one.column_names != other.column_names:
        return False
    pairs = [(one[name].combine_chunks(), other[name].combine_chunks()) for name in one.column_names]
    return all(_same(a, b) for a, b in pairs)


def _same(one: pa.Array, other: pa.Array) -> bool:
    if one.type != other.type or not one.is_valid().equals(other.is_valid()):
        return False
    if pa.types.is_fixed_size_list(one.type):
        return _same(one.flatten(), other.flatten())
    if pa.types.is_list(one.type):
        return one.value_lengths().equals(other.value_lengths()) and _same(one.flatten(), other.flatten())
    if pa.types.is_floating(one.type):
        integer = {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[one.type.bit_width]
        return one.view(integer).equals(other.view(integer))
    return one.equals(other)
