"""A sequence of part records, held as Arrow columns: about a sixth of the memory of `Part` objects.

Knows nothing of storage, manifests or Ray. Invariants: records come back unchanged and in the same order; a table is
immutable; at most `_BATCH_PARTS` records exist as objects at the same time.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Self, overload

import numpy as np
import pyarrow as pa

from varve.monitoring.row_errors import merge_reasons
from varve.output.part_file import Part

_BATCH_PARTS = 4096  # large enough that the ~100 bytes of overhead per column and batch do not matter
_PAIR = pa.list_(pa.int64(), 2)
_REPEATED_TEXT = pa.dictionary(pa.int32(), pa.string())  # few distinct values
# The fields of `Part`.
_SCHEMA = pa.schema(
    {
        "shard": pa.int32(),
        "start": pa.int64(),
        "stop": pa.int64(),
        "fingerprint": _REPEATED_TEXT,
        "num_tokens": pa.int64(),
        "num_errors": pa.int64(),
        "num_null_texts": pa.int64(),
        "num_truncated": pa.int64(),
        "shortest": _PAIR,
        "longest": _PAIR,
        "data_bytes": pa.int64(),
        "data_sha256": pa.binary(32),
        "file_bytes": pa.int64(),
        "footer_sha256": pa.binary(32),
        "counts": _REPEATED_TEXT,  # as JSON
        "error_reasons": _REPEATED_TEXT,  # as JSON
        "key_range": pa.string(),  # as JSON
    }
)
_JSON = ("counts", "error_reasons", "key_range")
_DIGESTS = ("data_sha256", "footer_sha256")
# Strings are converted to Python objects much faster than dictionary values.
_DECODED = pa.schema([field.with_type(pa.string()) if field.type == _REPEATED_TEXT else field for field in _SCHEMA])


@dataclass(frozen=True, slots=True, eq=False)
class PartTable(Sequence[Part]):  # noqa: PLW1641 (not hashable: a hash would need all records)
    """An immutable sequence of parts; each access makes a new `Part`.

    Attributes:
        columns: one row per part, one column per field of `Part`: numbers as int64 (shard as int32), SHA-256 as 32
            bytes.
    """

    columns: pa.Table

    @classmethod
    def of(cls, parts: Iterable[Part]) -> Self:
        """Make a table from parts, which are consumed in batches.

        Raises:
            ValueError, TypeError, OverflowError: a field has a value that a part cannot have.
        """
        remaining = iter(parts)
        batches = iter(lambda: list(islice(remaining, _BATCH_PARTS)), [])
        return cls(pa.Table.from_batches(map(_encode, batches), _SCHEMA))

    def __len__(self) -> int:
        return self.columns.num_rows

    def __iter__(self) -> Iterator[Part]:
        for batch in self.columns.to_batches(_BATCH_PARTS):
            yield from _decode(batch)

    @overload
    def __getitem__(self, at: int) -> Part: ...

    @overload
    def __getitem__(self, at: slice) -> "PartTable": ...

    def __getitem__(self, at: int | slice) -> "Part | PartTable":
        selected = range(len(self))[at]
        if isinstance(selected, range):
            return PartTable(self.columns.take(pa.array(selected, pa.int64())))
        return next(iter(PartTable(self.columns.slice(selected, 1))))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PartTable):
            return NotImplemented
        # Columns cannot be compared: their dictionaries may list the same values in another order.
        return len(self) == len(other) and all(one == another for one, another in zip(self, other, strict=True))

    def in_order(self) -> "PartTable":
        """The same parts, sorted by shard and row."""
        return PartTable(self.columns.sort_by([(name, "ascending") for name in ("shard", "start", "stop")]))

    def of_shards(self, shards: Iterable[int]) -> "PartTable":
        """The parts of some shards, of a table that is in order.

        They are a copy: pickled slices of Arrow's columns hold the whole columns.
        """
        numbers, slices = self.columns["shard"].to_numpy(), [_SCHEMA.empty_table()]
        for shard in sorted(shards):
            start, stop = np.searchsorted(numbers, (shard, shard + 1)).tolist()
            slices.append(self.columns.slice(start, stop - start))
        return PartTable(pa.concat_tables(slices).combine_chunks())  # one slice alone would not be copied

    @property
    def num_rows(self) -> int:
        """Rows in all parts."""
        return self._sum("stop") - self._sum("start")

    @property
    def num_tokens(self) -> int:
        """Tokens in all parts."""
        return self._sum("num_tokens")

    @property
    def num_errors(self) -> int:
        """Rows that failed."""
        return self._sum("num_errors")

    @property
    def num_null_texts(self) -> int:
        """Rows whose text is null."""
        return self._sum("num_null_texts")

    @property
    def num_truncated(self) -> int:
        """Rows whose text was cut."""
        return self._sum("num_truncated")

    @property
    def file_bytes(self) -> int:
        """Size of all files."""
        return self._sum("file_bytes")

    @property
    def counts(self) -> dict[str, int]:
        """Events of all parts: name → sum."""
        sums: Counter[str] = Counter()
        for counts in self._sums_of("counts"):
            sums.update(counts)
        return dict(sums)

    @property
    def error_reasons(self) -> dict[str, int]:
        """Reason → rows that failed for it, the most frequent reasons."""
        return merge_reasons(self._sums_of("error_reasons"))

    def _sums_of(self, name: str) -> Iterator[dict[str, int]]:
        """The counts of a column of JSON, once for each distinct value."""
        for distinct in self.columns[name].value_counts().to_pylist():
            yield {key: distinct["counts"] * count for key, count in json.loads(distinct["values"]).items()}

    def _sum(self, name: str) -> int:
        return int(self.columns[name].to_numpy().sum())


def _encode(parts: Sequence[Part]) -> pa.RecordBatch:
    columns = {name: [getattr(part, name) for part in parts] for name in _SCHEMA.names}
    for name in _DIGESTS:
        columns[name] = [None if digest is None else bytes.fromhex(digest) for digest in columns[name]]
    for name in _JSON:
        columns[name] = [json.dumps(counts) for counts in columns[name]]
    return pa.RecordBatch.from_pydict(columns, _SCHEMA)


def _decode(batch: pa.RecordBatch) -> Iterator[Part]:
    columns = batch.cast(_DECODED).to_pydict()
    for name in ("shortest", "longest"):
        columns[name] = [pair and tuple(pair) for pair in columns[name]]
    for name in _DIGESTS:
        columns[name] = [None if digest is None else digest.hex() for digest in columns[name]]
    for name in _JSON:
        columns[name] = [json.loads(text) for text in columns[name]]
    columns["key_range"] = [extremes and tuple(extremes) for extremes in columns["key_range"]]
    for values in zip(*columns.values(), strict=True):
        yield Part(**dict(zip(columns, values, strict=True)))
