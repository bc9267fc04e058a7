"""The records of a run's parts, as Arrow columns.

A record takes about a sixth of what it takes as an object. Knows nothing of storage, manifests or Ray. Invariants: what
comes out is what went in, in its order; nothing is changed once it is made; no more than some thousands of records are
objects at the same time, however many there are.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Self, overload

import pyarrow as pa

from varve.output.part_file import Part

# A column of a batch takes some hundred bytes beside its values: nothing that shows for so many parts.
_PARTS_A_BATCH = 4096
_PAIR = pa.list_(pa.int64(), 2)
_ALIKE = pa.dictionary(pa.int32(), pa.string())  # texts of which parts share few
# The fields of `Part`.
_SCHEMA = pa.schema(
    {
        "shard": pa.int32(),
        "start": pa.int64(),
        "stop": pa.int64(),
        "fingerprint": _ALIKE,
        "num_tokens": pa.int64(),
        "num_errors": pa.int64(),
        "num_truncated": pa.int64(),
        "shortest": _PAIR,
        "longest": _PAIR,
        "data_bytes": pa.int64(),
        "data_sha256": pa.binary(32),
        "file_bytes": pa.int64(),
        "footer_sha256": pa.binary(32),
        "counts": _ALIKE,  # as JSON
    }
)
_DIGESTS = ("data_sha256", "footer_sha256")
# Texts become objects much faster than the values of a dictionary.
_PLAIN = pa.schema([field.with_type(pa.string()) if field.type == _ALIKE else field for field in _SCHEMA])


@dataclass(frozen=True, slots=True, eq=False)
class PartTable(Sequence[Part]):  # noqa: PLW1641 (its use as a key would read all of it)
    """A sequence of parts. A `Part` is made anew each time that it is asked for.

    Attributes:
        columns: (P,) the fields of P parts, numbers as int64 but for shard (int32), hashes as 32 bytes.
    """

    columns: pa.Table

    @classmethod
    def of(cls, parts: Iterable[Part]) -> Self:
        """Take parts as they come; none is held as an object for long.

        Raises:
            ValueError, TypeError, OverflowError: a field holds what no part has there.
        """
        left = iter(parts)
        batches = iter(lambda: list(islice(left, _PARTS_A_BATCH)), [])
        return cls(pa.Table.from_batches(map(_encode, batches), _SCHEMA))

    def __len__(self) -> int:
        return self.columns.num_rows

    def __iter__(self) -> Iterator[Part]:
        for batch in self.columns.to_batches(_PARTS_A_BATCH):
            yield from _decode(batch)

    @overload
    def __getitem__(self, at: int) -> Part: ...

    @overload
    def __getitem__(self, at: slice) -> "PartTable": ...

    def __getitem__(self, at: int | slice) -> "Part | PartTable":
        found = range(len(self))[at]
        if isinstance(found, range):
            return PartTable(self.columns.take(pa.array(found, pa.int64())))
        return next(iter(PartTable(self.columns.slice(found, 1))))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PartTable):
            return NotImplemented
        # Not as columns: a dictionary may have the same values in another order.
        return len(self) == len(other) and all(one == another for one, another in zip(self, other, strict=True))

    def in_order(self) -> "PartTable":
        """The same parts by shard and row."""
        return PartTable(self.columns.sort_by([(name, "ascending") for name in ("shard", "start", "stop")]))

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
        """Rows that ended with an error."""
        return self._sum("num_errors")

    @property
    def num_truncated(self) -> int:
        """Rows whose text was cut."""
        return self._sum("num_truncated")

    @property
    def file_bytes(self) -> int:
        """Bytes of all files."""
        return self._sum("file_bytes")

    @property
    def counts(self) -> dict[str, int]:
        """What happened to all parts together."""
        sums: Counter[str] = Counter()
        for alike in self.columns["counts"].value_counts().to_pylist():
            sums.update({name: alike["counts"] * count for name, count in json.loads(alike["values"]).items()})
        return dict(sums)

    def _sum(self, name: str) -> int:
        return int(self.columns[name].to_numpy().sum())


def _encode(parts: Sequence[Part]) -> pa.RecordBatch:
    columns = {name: [getattr(part, name) for part in parts] for name in _SCHEMA.names}
    for name in _DIGESTS:
        columns[name] = [None if digest is None else bytes.fromhex(digest) for digest in columns[name]]
    columns["counts"] = [json.dumps(counts) for counts in columns["counts"]]
    return pa.RecordBatch.from_pydict(columns, _SCHEMA)


def _decode(batch: pa.RecordBatch) -> Iterator[Part]:
    columns = batch.cast(_PLAIN).to_pydict()
    for name in ("shortest", "longest"):
        columns[name] = [pair and tuple(pair) for pair in columns[name]]
    for name in _DIGESTS:
        columns[name] = [None if digest is None else digest.hex() for digest in columns[name]]
    columns["counts"] = map(json.loads, columns["counts"])
    for values in zip(*columns.values(), strict=True):
        yield Part(**dict(zip(columns, values, strict=True)))
