"""Rows of an output in memory: some columns as one table, and one row by its shard and number.

Knows nothing of models. Invariant: rows are in the manifest's order of parts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from varve.encoder.feature_plan import Column
from varve.errors import JobError, RunError
from varve.output.part_file import Part
from varve.output.run_output import Output
from varve.output.vectors import read_vectors

_BATCH_ROWS = 256  # of which one is returned; a row of token vectors has about 100 kB
_AS_STORED = ("sparse", "attentions")


def read_table(output: Output, columns: Sequence[str] | None = None) -> pa.Table:
    """Columns of all rows, in the types that are stored.

    Args:
        output: of a finished run.
        columns: their names; None: all.

    Raises:
        JobError: there is no such column.
        RunError: a part is missing or damaged.
    """
    names = output.schema.names if columns is None else columns
    check_columns(output, names)
    empty = pa.schema([output.schema.field(name) for name in names]).empty_table()
    return pa.concat_tables([empty, *(table for _, table in output.tables(names))])


def check_columns(output: Output, names: Sequence[str]) -> None:
    """Check that an output has these columns.

    Raises:
        JobError: it has not.
    """
    if isinstance(names, str):
        msg = f"columns: {names!r} is one text: expected a list of names"
        raise JobError(msg)
    if unknown := [name for name in names if name not in output.schema.names]:
        msg = f"{output.path} has no column {unknown[0]!r:.200}; it has: {', '.join(output.schema.names)[:1000]}"
        raise JobError(msg)


def read_row(output: Output, shard: int, row: int) -> dict[str, Any]:
    """All columns of one row: dense vectors as float32 arrays, everything else as Python values.

    Args:
        output: of a finished run.
        shard: number of the shard.
        row: number of the row in its shard.

    Returns:
        Column → value. A feature of one vector is (width,) float32; of windows, chunks or tokens (N, width) float32;
        sparse vectors and attentions are as stored. A row with an error has None for each feature.

    Raises:
        JobError: there is no such row.
        RunError: its part is missing or damaged.
    """
    part = find_part(output, shard, row)
    names, at = list(output.schema.names), row - part.start
    for table in output.batches(part, names, _BATCH_ROWS):
        if at < len(table):
            return _decode(output, table.slice(at, 1))
        at -= len(table)
    msg = f"{output.path}/{part.name} has fewer rows than its name says. See `varve verify`"
    raise RunError(msg)


def find_part(output: Output, shard: int, row: int) -> Part:
    """The part that holds a row.

    Raises:
        JobError: there is none.
    """
    parts = output.manifest.parts
    shards, starts, stops = (parts.columns[name].to_numpy() for name in ("shard", "start", "stop"))
    found = np.flatnonzero((shards == shard) & (starts <= row) & (row < stops))
    if not len(found):
        rows = int(stops[shards == shard].max(initial=0))
        has = f"shard {shard} has rows 0 to {rows - 1}" if rows else f"the shards are 0 to {shards.max()}"
        msg = f"{output.path} has no row {row} in shard {shard}: {has}"
        raise JobError(msg)
    return parts[int(found[0])]


def _decode(output: Output, table: pa.Table) -> dict[str, Any]:
    decoded = {column.name: column for column in output.features.values() if column.form not in _AS_STORED}
    scales = {column.scale_name for column in decoded.values()}
    return {
        name: _vectors(table, decoded[name]) if name in decoded else table[name][0].as_py()
        for name in table.column_names
        if name not in scales
    }


def _vectors(table: pa.Table, column: Column) -> Any:
    if not table[column.name][0].is_valid:
        return None
    vectors = read_vectors(table, column)
    return vectors[0] if column.form == "vector" else vectors
