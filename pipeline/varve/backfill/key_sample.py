"""Sampled rows of a feature table, and the rows of the source with the same keys.

Invariant: the work is bounded by a few files of the feature table; of the source, texts are read only from files that
hold a sampled key.
"""

import random
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from varve.backfill.keys.key_ranges import KeyRanges
from varve.lake.table import Table, TableFile

_FILES = 4


def sample_rows(table: Table, version: int | None, columns: Sequence[str], rows: int, seed: int) -> pa.Table:
    """Up to `rows` rows of up to four files.

    Args:
        table: with features.
        version: of it.
        columns: that are read.
        rows: how many.
        seed: of the choice.
    """
    draw = random.Random(seed)  # noqa: S311 (a sample, not a secret)
    files = [file for file in table.files(version) if file.num_rows != 0]
    chosen = draw.sample(files, min(_FILES, len(files)))
    each = -(-rows // max(1, len(chosen)))
    found = [_some_rows(table, version, file, columns, each, draw) for file in chosen]
    return pa.concat_tables(found) if found else pa.table({name: [] for name in columns})


def _some_rows(
    table: Table, version: int | None, file: TableFile, columns: Sequence[str], rows: int, draw: random.Random
) -> pa.Table:
    """Rows of a file: of the batch that holds a random one."""
    first, wanted = 0, draw.randrange(file.num_rows or 1)
    batch = None
    for batch in table.read(version, file, columns):
        first += len(batch)
        if first > wanted:
            break
    assert batch is not None
    positions = sorted(draw.sample(range(len(batch)), min(rows, len(batch))))
    return batch.take(pa.array(positions, pa.int64()))


def find_rows(table: Table, version: int, key: str, keys: pa.ChunkedArray, columns: Sequence[str]) -> pa.Table:
    """The rows of a table with these keys.

    Args:
        table: the source.
        version: of it.
        key: name of the key column.
        keys: the keys, a few.
        columns: that are read besides the key.
    """
    ranges = KeyRanges((value, value) for value in keys.to_pylist())
    wanted = pa.array(keys.to_pylist(), keys.type)
    found = []
    for file in table.files(version, key):
        if ranges.overlap(file.key_range) and _holds(table, version, file, key, wanted):
            batches = table.read(version, file, [key, *columns])
            found += [batch.filter(_is_in(batch[key], wanted)) for batch in batches]
    return pa.concat_tables(found) if found else pa.table({name: [] for name in (key, *columns)})


def _holds(table: Table, version: int, file: TableFile, key: str, wanted: pa.Array) -> bool:
    return any(_is_in(batch[key], wanted).to_numpy().any() for batch in table.read(version, file, [key]))


def _is_in(values: pa.ChunkedArray, wanted: pa.Array) -> pa.ChunkedArray:
    return pc.is_in(values, wanted.cast(values.type))  # pyright: ignore[reportAttributeAccessIssue] (made at run time)
