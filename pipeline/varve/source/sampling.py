"""The rows of a source that are looked at before a run, from a few shards.

Knows nothing of tokens. Invariant: the work is bounded, however many shards there are and however few rows have a text.
"""

from collections.abc import Sequence
from itertools import islice

import pyarrow as pa

from varve.source.dataset import Dataset

SAMPLED_SHARDS = 4
# Of a shard whose first rows have no text.
_TABLES = 16


def some_shards(num_shards: int) -> list[int]:
    """A few shards, spread over all; the first is among them."""
    last, steps = num_shards - 1, SAMPLED_SHARDS - 1
    return sorted({round(last * step / steps) for step in range(SAMPLED_SHARDS)})


def rows_with_text(dataset: Dataset, text_columns: Sequence[str], rows: int) -> pa.Table:
    """The first rows whose texts are there; of the first shard, and of others where it has too few.

    Raises:
        RunError: a shard can't be read.
    """
    found = dataset.schema.empty_table()
    for shard in some_shards(dataset.num_shards):
        for table in islice(dataset.read(shard), _TABLES):
            found = pa.concat_tables([found, _with_text(table, text_columns)])
            if len(found) >= rows:
                return found.slice(0, rows)
    return found


def _with_text(table: pa.Table, text_columns: Sequence[str]) -> pa.Table:
    for name in text_columns:
        table = table.filter(table[name].is_valid())
    return table
