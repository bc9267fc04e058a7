"""Finds rows that would become the same point: equal or absent values of the key column.

Invariant: memory is 8 bytes per row; equal hashes are compared by their values before they are reported.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from varve.errors import JobError
from varve.indexing.rows import ROW, SHARD
from varve.indexing.source import IndexSource

_EXAMPLES = 2
_ENCODED = "num_tokens"  # null in rows without vectors

Row = tuple[Any, int, int]  # value of the key, shard, row


def check_keys(source: IndexSource, key: str) -> None:
    """Refuse a key column that does not identify the rows with vectors.

    Raises:
        JobError: it has a null, or the same value twice; the message shows two examples.
        RunError: a part is missing or damaged.
    """
    hashes = np.fromiter((_hash(source, key, row) for row in _rows(source, key)), np.int64)
    hashes.sort()
    suspects = set(np.unique(hashes[1:][hashes[1:] == hashes[:-1]]).tolist())
    if not suspects:
        return
    first_of: dict[Any, Row] = {}
    repeated = ((first_of.setdefault(row[0], row), row) for row in _rows(source, key) if hash(row[0]) in suspects)
    if examples := list(islice((pair for pair in repeated if pair[0] != pair[1]), _EXAMPLES)):
        listed = "".join(f"\n  {one[0]!r}: {_place(one)} and {_place(other)}" for one, other in examples)
        msg = (
            f"{source.output.storage.uri}: --key {key} has the same value in several rows:{listed}\n"
            "Choose a column of unique values, or leave --key out: then shard and row identify a row"
        )
        raise JobError(msg)


def _hash(source: IndexSource, key: str, row: Row) -> int:
    if row[0] is None:
        msg = f"{source.output.storage.uri}: --key {key} is null in {_place(row)}: expected a value in each row"
        raise JobError(msg)
    return hash(row[0])


def _rows(source: IndexSource, key: str) -> Iterator[Row]:
    for _, table in source.output.tables([key, SHARD, ROW, _ENCODED]):
        encoded = table.filter(table[_ENCODED].is_valid())
        yield from zip(*(encoded[name].to_pylist() for name in (key, SHARD, ROW)), strict=True)


def _place(row: Row) -> str:
    return f"shard {row[1]} row {row[2]}"
