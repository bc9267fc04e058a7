"""Checks that a kept column identifies the documents: no nulls, no duplicates, no text that is too long for an `_id`.

Knows nothing of documents. Invariant: memory is 8 bytes per row, for hashes, which only select the rows whose keys are
compared.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from varve.errors import JobError
from varve.indexing.rows import ROW, SHARD
from varve.indexing.source import IndexSource

MAX_KEY_BYTES = 480  # an _id has at most 512, with the number of a window
_ENCODED = "num_tokens"  # null in rows without vectors
_MULTIPLIER = 0x9E3779B97F4A7C15


def check_keys(source: IndexSource, key: str) -> None:
    """Read the column and refuse what cannot identify documents.

    Raises:
        JobError: with two examples, or the type of the column.
        RunError: a part is missing or damaged.
    """
    kind = source.output.schema.field(key).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
        msg = f"key: the column {key!r} is of type {kind}, expected strings or integers"
        raise JobError(msg)
    hashes = [_hashes(keys.column(0)) for keys in _checked(source, key)]
    found = np.sort(np.concatenate(hashes)) if hashes else np.zeros(0, np.uint64)
    repeated = np.unique(found[1:][found[1:] == found[:-1]])
    if len(repeated):
        _refuse_duplicates(source, key, repeated)


def _checked(source: IndexSource, key: str) -> Iterator[pa.Table]:
    """The keys as text, with shard and row, of each part.

    Raises:
        JobError: a key is null, empty or too long.
    """
    for part in source.output.manifest.parts:
        table = source.output.read(part, [key, SHARD, ROW, _ENCODED])
        table = table.filter(table[_ENCODED].is_valid())
        keys = table[key].cast(pa.large_string()).combine_chunks()
        table = table.set_column(0, key, keys)
        lengths = pc.binary_length(keys).fill_null(0).to_numpy(zero_copy_only=False)  # pyright: ignore[reportAttributeAccessIssue]
        if len(bad := np.flatnonzero((lengths == 0) | (lengths > MAX_KEY_BYTES))):
            first = table.slice(int(bad[0]), 1).to_pylist()[0]
            value = "is null" if first[key] is None else f"has {lengths[bad[0]]} bytes"
            where = f"shard {first[SHARD]}, row {first[ROW]}"
            expected = f"expected 1 to {MAX_KEY_BYTES} bytes"
            msg = f"key: the column {key!r} {value} in {len(bad)} row(s) of {part.name}, such as {where}; {expected}"
            raise JobError(msg)
        yield table


def _refuse_duplicates(source: IndexSource, key: str, repeated: NDArray[np.uint64]) -> None:
    """Compare the keys whose hashes are equal.

    Raises:
        JobError: two of them are equal.
    """
    counts: Counter[str] = Counter()
    places: defaultdict[str, list[str]] = defaultdict(list)
    for table in _checked(source, key):
        suspects = table.filter(pa.array(np.isin(_hashes(table.column(0)), repeated)))
        for row in suspects.to_pylist():
            counts[row[key]] += 1
            if counts[row[key]] <= 2:
                places[row[key]].append(f"shard {row[SHARD]}, row {row[ROW]}")
    duplicates = [value for value, count in counts.most_common() if count > 1]
    if duplicates:
        examples = "; ".join(f"{value!r} in {' and '.join(places[value])}" for value in duplicates[:2])
        advice = "Use another column, or none: documents are then identified by shard and row"
        msg = f"key: the column {key!r} has {len(duplicates):,} value(s) that are not unique: {examples}. {advice}"
        raise JobError(msg)


def _hashes(keys: pa.Array | pa.ChunkedArray) -> NDArray[np.uint64]:
    """(N,) hashes of N texts that are not empty: the bytes times powers of a constant, summed modulo 2^64."""
    texts = keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys
    if not len(texts):
        return np.zeros(0, np.uint64)
    offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    content = np.frombuffer(texts.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]
    starts = offsets[:-1] - offsets[0]
    place = np.arange(len(content)) - np.repeat(starts, np.diff(offsets))
    powers = np.full(MAX_KEY_BYTES + 1, _MULTIPLIER, np.uint64)
    powers = np.cumprod(powers, dtype=np.uint64)
    return np.add.reduceat((content.astype(np.uint64) + np.uint64(1)) * powers[place], starts)
