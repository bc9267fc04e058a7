"""Sample rows of a source, from which a run is planned.

Knows nothing of tokens. Invariant: the work is bounded, whatever the number of shards and of rows without a text.
"""

from collections.abc import Sequence
from itertools import islice

import pyarrow as pa

from varve.source.dataset import Dataset

SAMPLED_SHARDS = 4
_MAX_TABLES_PER_SHARD = 16


def some_shards(num_shards: int) -> list[int]:
    """Up to four shards, spread evenly from the first to the last; none of a source without shards."""
    if not num_shards:
        return []
    last, steps = num_shards - 1, SAMPLED_SHARDS - 1
    return sorted({round(last * step / steps) for step in range(SAMPLED_SHARDS)})


def rows_with_text(dataset: Dataset, text_columns: Sequence[str], rows: int) -> pa.Table:
    """Up to `rows` first rows whose text columns are not null; later shards are read only if earlier have too few.

    Raises:
        RunError: a shard cannot be read.
    """
    sample = dataset.schema.empty_table()
    for shard in some_shards(dataset.num_shards):
        for table in islice(dataset.read(shard), _MAX_TABLES_PER_SHARD):
            sample = pa.concat_tables([sample, _with_text(table, text_columns)])
            if len(sample) >= rows:
                return sample.slice(0, rows)
    return sample


def _with_text(table: pa.Table, text_columns: Sequence[str]) -> pa.Table:
    for name in text_columns:
        table = table.filter(table[name].is_valid())
    return table
