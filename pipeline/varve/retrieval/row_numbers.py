"""Which row of an output a position belongs to, and the kept columns of rows.

Rows are numbered from 0 in the manifest's order of parts; two outputs of the same source therefore number them alike,
whatever their parts are. Knows nothing of vectors: a row has one if it has a number of tokens. Invariant: only the
parts that hold the wanted rows are read, and of these only the wanted columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.encoder.feature_plan import SPAN_COLUMNS
from varve.indexing.rows import ROW, SHARD
from varve.indexing.source import IndexSource
from varve.output.output_rows import find_part
from varve.output.run_output import Output
from varve.output.vectors import flatten, list_offsets

_BATCH_ROWS = 4096
NO_ROW = -1

Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Located:
    """Where N positions are.

    Attributes:
        numbers: (N,) int64 of the rows.
        items: (N,) int32, number of the window or chunk in its row; None if a row has one vector.
        spans: (N, 2) int32, its first character and the last one + 1; None as well.
    """

    numbers: Numbers
    items: NDArray[np.int32] | None
    spans: NDArray[np.int32] | None


def first_numbers(output: Output) -> Numbers:
    """(parts + 1,) number of the first row of each part."""
    table = output.manifest.parts.columns
    counts = table["stop"].to_numpy() - table["start"].to_numpy()
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def locate(source: IndexSource, positions: Numbers) -> Located:
    """The rows of N positions, in their order.

    Raises:
        RunError: a part is missing or damaged.
    """
    firsts, part_of = first_numbers(source.output), source.part_of(positions)
    numbers = np.zeros(len(positions), np.int64)
    items, spans = np.zeros(len(positions), np.int32), np.zeros((len(positions), 2), np.int32)
    for part in np.unique(part_of):
        here = part_of == part
        wanted = positions[here] - source.starts[part]
        rows_of, items_of, spans_of = _vectors_of_part(source, int(part))
        numbers[here] = firsts[part] + rows_of[wanted]
        if items_of is not None and spans_of is not None:
            items[here], spans[here] = items_of[wanted], spans_of[wanted]
    return Located(numbers, items, spans) if source.has_items else Located(numbers, None, None)


def _vectors_of_part(
    source: IndexSource, part: int
) -> tuple[Numbers, NDArray[np.int32] | None, NDArray[np.int32] | None]:
    """(row in the part, item, span) of each vector of a part."""
    record = source.output.manifest.parts[part]
    if source.has_items:
        cells = source.output.read(record, [SPAN_COLUMNS[source.column.form]]).column(0)
        offsets = list_offsets(cells)
        rows_of = np.repeat(np.arange(len(cells)), np.diff(offsets))
        items = (np.arange(offsets[-1]) - offsets[:-1][rows_of]).astype(np.int32)
        return rows_of, items, flatten(cells).reshape(-1, 2)
    if not record.num_errors + record.num_null_texts:
        return np.arange(record.range.num_rows), None, None
    return np.flatnonzero(_have_vectors(source.output, part)), None, None


def _have_vectors(output: Output, part: int) -> NDArray[np.bool_]:
    return output.read(output.manifest.parts[part], ["num_tokens"]).column(0).is_valid().to_numpy()


def positions_of(source: IndexSource, numbers: Numbers) -> Numbers:
    """Position of the vector of each row; `NO_ROW` for rows without, and where a row may hold several vectors."""
    found = np.full(len(numbers), NO_ROW, np.int64)
    if source.has_items:
        return found
    firsts = first_numbers(source.output)
    part_of = np.searchsorted(firsts, numbers, side="right") - 1
    for part in np.unique(part_of):
        here = part_of == part
        has_vector = np.ones(int(firsts[part + 1] - firsts[part]), np.bool_)
        record = source.output.manifest.parts[int(part)]
        if record.num_errors + record.num_null_texts:
            has_vector = _have_vectors(source.output, int(part))
        places = np.where(has_vector, source.starts[part] + np.cumsum(has_vector) - 1, NO_ROW)
        found[here] = places[numbers[here] - firsts[part]]
    return found


def row_number(output: Output, shard: int, row: int) -> int:
    """The number of a row of a shard.

    Raises:
        JobError: there is no such row.
    """
    part, parts = find_part(output, shard, row), output.manifest.parts.columns
    shards, starts = (parts[name].to_numpy() for name in ("shard", "start"))
    at = int(np.flatnonzero((shards == part.shard) & (starts == part.start))[-1])  # after empty parts of this start
    return int(first_numbers(output)[at]) + row - part.start


def read_rows(output: Output, numbers: Numbers, columns: Sequence[str]) -> pa.Table:
    """shard, row and kept columns of N rows, in their order.

    Raises:
        RunError: a part is missing or damaged.
    """
    firsts = first_numbers(output)
    part_of = np.searchsorted(firsts, numbers, side="right") - 1
    parts = output.manifest.parts.columns
    shards, starts = parts["shard"].to_numpy()[part_of], parts["start"].to_numpy()[part_of]
    ids: dict[str, Any] = {SHARD: pa.array(shards, pa.int32()), ROW: pa.array(starts + numbers - firsts[part_of])}
    if columns:
        kept = _read_columns(output, np.unique(numbers), firsts, columns)
        at = np.searchsorted(np.unique(numbers), numbers)
        ids |= {name: kept[name].take(pa.array(at)) for name in columns}
    return pa.table(ids)


def _read_columns(output: Output, numbers: Numbers, firsts: Numbers, columns: Sequence[str]) -> pa.Table:
    """Kept columns of rows with ascending, distinct numbers."""
    tables = [pa.schema([output.schema.field(name) for name in columns]).empty_table()]
    for part in np.unique(np.searchsorted(firsts, numbers, side="right") - 1):
        start = int(firsts[part])
        for batch in output.batches(output.manifest.parts[int(part)], columns, _BATCH_ROWS):
            inside = numbers[(numbers >= start) & (numbers < start + len(batch))]
            if len(inside):
                tables.append(batch.take(pa.array(inside - start)))
            start += len(batch)
            if not (numbers[numbers < firsts[part + 1]] >= start).any():
                break
    return pa.concat_tables(tables)
