"""Compares sampled rows of a finished index with its source, before it is published."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.errors import RunError
from varve.indexing.source import DENSE, IndexSource
from varve.indexing.target import Searcher

_CHECKED_ROWS, _CHECKED_PARTS = 100, 4


def check_rows(searcher: Searcher, source: IndexSource) -> None:
    """Compare sampled rows of the index with the source.

    Raises:
        RunError: they differ.
    """
    positions = source.sample_positions(_CHECKED_ROWS, seed=1, max_parts=_CHECKED_PARTS)
    stored, expected = searcher.rows(positions), _rows_of(source, positions)
    if not stored.select(expected.column_names).equals(expected):
        raise _differ(source, f"columns {', '.join(expected.column_names)}")
    vectors = searcher.dense_at(positions) if source.kind == DENSE else None
    if vectors is not None and not np.array_equal(vectors, source.dense_at(positions)):
        raise _differ(source, "vectors")


def _differ(source: IndexSource, what: str) -> RunError:
    return RunError(
        f"the index does not hold the rows of {source.output.storage.uri}: the {what} of sampled positions differ. "
        "Delete what the build has written, and build it again"
    )


def _rows_of(source: IndexSource, positions: NDArray[np.int64]) -> pa.Table:
    tables, part_of = [], source.part_of(positions)
    for part in np.unique(part_of):
        rows = source.read(int(part))
        tables.append(rows.ids.take(pa.array(positions[part_of == part] - rows.first)))
    return pa.concat_tables(tables)
