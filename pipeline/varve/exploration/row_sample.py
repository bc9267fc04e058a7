"""A sample of the rows of an output with their vectors.

Knows nothing of what is computed from them. Invariants: rows are in the manifest's order; the rows of all features with
one vector per row are the same, and rows without features or with numbers that are not finite are left out; memory is
bounded by `MAX_BYTES`, whatever the size of the output.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.encoder.feature_plan import Column
from varve.errors import RunError
from varve.exploration.sampled_parts import sample_rows
from varve.output.feature_sets import JoinedOutput
from varve.output.parquet_footer import read_footer_sizes
from varve.output.run_output import Output, stored_names
from varve.output.vectors import read_vectors
from varve.retrieval.exact_search import available_cores
from varve.storage.object_file import ObjectFile

MAX_ROWS = 20_000
MAX_BYTES = 2**29  # of all sampled vectors as float32
MAX_DECODED_BYTES = 6 * 2**30  # of all parts that rows are taken from
_MIN_ROWS = 1000
_BATCH_BYTES = 2**24
_STORE_THREADS = 4  # hide the latency of a store
_ROW_COLUMNS = ["num_tokens", "truncated", "error", "shard", "row"]
SINGLE, LISTS = "vector", ("windows", "chunks")  # forms whose vectors are sampled


@dataclass(frozen=True, slots=True, eq=False)
class RowSample:
    """N sampled rows with features.

    Attributes:
        shards: (N,) int32.
        rows: (N,) int64.
        truncated: (N,) bool.
        vectors: feature with one vector per row → (N, width) float32.
        lists: feature with several vectors per row → (M, width) float32, at most `MAX_ROWS` of the sampled rows.
        kept: the requested kept columns, N rows.
    """

    shards: NDArray[np.int32]
    rows: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    vectors: dict[str, NDArray[np.float32]]
    lists: dict[str, NDArray[np.float32]]
    kept: pa.Table

    def __len__(self) -> int:
        return len(self.rows)


def read_sample(output: Output, seed: int, kept: Sequence[str] = ()) -> RowSample:
    """Sample rows and read their vectors.

    Args:
        output: to read.
        seed: of the draw.
        kept: kept columns to read with them.

    Raises:
        RunError: a part is missing or damaged.
    """
    columns = [column for column in output.features.values() if column.form in {SINGLE, *LISTS}]
    reading = _Reading(columns, kept, 0, 0, seed)
    row_bytes = _row_bytes(output, reading.names)
    limit = int(np.clip(MAX_BYTES // (sum(4 * column.width for column in columns) or 1), _MIN_ROWS, MAX_ROWS))
    parts = output.manifest.parts.columns
    part_rows = parts["stop"].to_numpy() - parts["start"].to_numpy()
    chosen = sample_rows(part_rows, limit, int(MAX_DECODED_BYTES / row_bytes), seed)
    batch_rows = int(np.clip(_BATCH_BYTES / row_bytes, 64, 8192))
    reading = replace(reading, batch_rows=batch_rows, num_listed=limit // len(chosen) + 1)
    with ThreadPoolExecutor(available_cores() if output.storage.is_local else _STORE_THREADS) as threads:
        return _join(list(threads.map(reading.read, repeat(output), chosen.keys(), chosen.values())))


def _row_bytes(output: Output, names: Sequence[str]) -> float:
    """Decoded bytes of these columns in a row, as the footer of the largest part says."""
    parts = output.manifest.parts
    rows = parts.columns["stop"].to_numpy() - parts.columns["start"].to_numpy()
    number = int(rows.argmax())
    total = 0
    for each in output.sets if isinstance(output, JoinedOutput) else (output,):
        part = each.manifest.parts[number] if len(each.manifest.parts) == len(parts) else each.manifest.parts[0]
        try:
            _, chunks = read_footer_sizes(ObjectFile(each.storage, part.name, part.file_bytes))
        except ValueError as e:
            msg = f"{each.storage.uri}/{part.name} cannot be read: {e}. See `varve verify`"
            raise RunError(msg) from e
        wanted = [chunk for chunk in chunks if any(f"{chunk.path}.".startswith(f"{name}.") for name in names)]
        total += sum(max(chunk.uncompressed_bytes, 0) for chunk in wanted)
    return max(total / int(rows[number]), 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class _Reading:
    """What is read of each part.

    Attributes:
        columns: features.
        kept: kept columns.
        batch_rows: that are decoded at once.
        num_listed: vectors to keep of a feature with several vectors per row.
        seed: of their choice.
    """

    columns: Sequence[Column]
    kept: Sequence[str]
    batch_rows: int
    num_listed: int
    seed: int

    @property
    def names(self) -> list[str]:
        """All stored columns that are needed."""
        return list(dict.fromkeys([*stored_names(self.columns), *_ROW_COLUMNS, *self.kept]))

    def read(self, output: Output, number: int, positions: NDArray[np.int64]) -> RowSample:
        """The sampled rows of one part."""
        table = pa.concat_tables(self._batches(output, number, positions))
        table = table.filter(table["error"].is_null())
        vectors = {each.name: read_vectors(table, each) for each in self.columns if each.form == SINGLE}
        finite = np.ones(len(table), np.bool_)
        for values in vectors.values():
            finite &= np.isfinite(values).all(axis=1)
        if not finite.all():
            table, vectors = table.filter(pa.array(finite)), {name: each[finite] for name, each in vectors.items()}
        random = np.random.default_rng([self.seed, 1, number])
        lists = {
            each.name: self._thin(read_vectors(table, each), random) for each in self.columns if each.form in LISTS
        }
        shards, rows, truncated = (table[name].to_numpy() for name in ("shard", "row", "truncated"))
        return RowSample(shards, rows, truncated, vectors, lists, table.select(list(self.kept)))

    def _batches(self, output: Output, number: int, positions: NDArray[np.int64]) -> Iterator[pa.Table]:
        first, last = 0, int(positions[-1])
        for batch in output.batches(output.manifest.parts[number], self.names, self.batch_rows):
            inside = positions[(positions >= first) & (positions < first + len(batch))]
            yield batch.take(pa.array(inside - first))
            first += len(batch)
            if first > last:
                return

    def _thin(self, vectors: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
        vectors = vectors[np.isfinite(vectors).all(axis=1)]
        if len(vectors) <= self.num_listed:
            return vectors
        return vectors[np.sort(random.choice(len(vectors), self.num_listed, replace=False))]


def _join(samples: Sequence[RowSample]) -> RowSample:
    """The rows of several parts; the parts' own arrays are released one feature at a time."""
    first = samples[0]
    return RowSample(
        np.concatenate([each.shards for each in samples]),
        np.concatenate([each.rows for each in samples]),
        np.concatenate([each.truncated for each in samples]),
        {name: np.concatenate([each.vectors.pop(name) for each in samples]) for name in list(first.vectors)},
        {name: np.concatenate([each.lists.pop(name) for each in samples]) for name in list(first.lists)},
        pa.concat_tables([each.kept for each in samples]),
    )
