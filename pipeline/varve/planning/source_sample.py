"""Reads the first rows of a few shards, and estimates from them the rows of the source and the time to read them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from varve.source.dataset import Dataset
from varve.source.sampling import some_shards
from varve.storage.fsspec_files import file_size

SAMPLE_ROWS = 1000  # of each sampled shard
_COMPRESSION = 3.0  # typical ratio of compressed text files
_COMPRESSED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz", ".lz4", ".zip")


@dataclass(frozen=True, slots=True)
class SourceSample:
    """Sampled rows of a source, and figures for the whole source."""

    table: pa.Table
    num_rows: int  # of the source
    rows_known: bool  # False: num_rows is an estimate
    read_s: float  # CPU seconds to read all rows


def sample_source(dataset: Dataset) -> SourceSample:
    """Read up to `SAMPLE_ROWS` rows of some shards.

    Raises:
        RunError: the source cannot be read.
    """
    began = time.process_time()
    samples = [_first_rows(dataset, shard) for shard in some_shards(dataset.num_shards)]
    table = pa.concat_tables([dataset.schema.empty_table(), *(table for table, _ in samples)])
    spent_s = time.process_time() - began
    num_rows, known = _count_rows(dataset, samples)
    return SourceSample(table, num_rows, known, spent_s * num_rows / max(1, len(table)))


def _first_rows(dataset: Dataset, shard: int) -> tuple[pa.Table, bool]:
    """Return (first rows of a shard, whether these are all)."""
    tables: list[pa.Table] = []
    rows = 0
    for table in dataset.read(shard):
        tables.append(table)
        rows += len(table)
        if rows > SAMPLE_ROWS:
            return pa.concat_tables(tables).slice(0, SAMPLE_ROWS), False
    return pa.concat_tables(tables) if tables else dataset.schema.empty_table(), True


def _count_rows(dataset: Dataset, samples: Sequence[tuple[pa.Table, bool]]) -> tuple[int, bool]:
    """Return (rows of the source, whether the number is exact); else it is estimated from the sizes of the files."""
    if dataset.shard_rows is not None:
        return sum(dataset.shard_rows), True
    if len(samples) == dataset.num_shards and all(is_complete for _, is_complete in samples):
        return sum(len(table) for table, _ in samples), True
    sizes = [file_size(uri) or 0 for uri in dataset.files]
    table, is_complete = samples[0]
    rows = max(1, len(table))
    ratio = _COMPRESSION if dataset.files[0].endswith(_COMPRESSED_SUFFIXES) else 1.0
    row_size = sizes[0] / rows if is_complete else table.nbytes / rows / ratio
    return round(sum(sizes) / row_size) if row_size else 0, False
