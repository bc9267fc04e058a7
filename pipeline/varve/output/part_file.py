"""A table of features → the Parquet file of one part, created once.

Knows nothing of models or Ray. Invariants: a part holds exactly the rows that its name says; its footer records what a
finished run must know of it (rows, tokens, errors, and a hash of its data), so that nothing else needs to be kept while
the run goes on; a hash of the footer joins the record once the footer is there.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from varve.errors import RunError, one_line
from varve.ranges import Range
from varve.storage.object_store import Storage

PART_KEY = b"varve.part"
DATA_PREFIX = "data"

_NAME = re.compile(r"data/part-(\d{5,})-(\d{12})-(\d{12})\.parquet")
# A footer is read in one request if it fits; that of a part with a hundred columns has about 60 kB.
_TAIL_BYTES = 64 * 1024
_MAGIC_BYTES = 8  # footer length and "PAR1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A committed part: its range and what its footer records."""

    shard: int
    start: int
    stop: int
    fingerprint: str
    num_tokens: int
    num_errors: int
    num_truncated: int
    shortest: tuple[int, int] | None  # (row, tokens) of the text with fewest tokens; None without an encoded row
    longest: tuple[int, int] | None
    data_bytes: int  # bytes before the footer
    data_sha256: str  # of those bytes
    file_bytes: int = 0  # of the whole file, as the store lists it
    footer_sha256: str | None = None  # of what follows the data, which can't say it; None in records of older versions
    counts: dict[str, int] = field(default_factory=dict)  # texts encoded with their likes, redone, packs split

    @property
    def range(self) -> Range:
        """The rows of the part."""
        return Range(self.shard, self.start, self.stop)

    @property
    def name(self) -> str:
        """The object's name below the output's path."""
        return part_name(self.range)

    def to_json(self) -> dict[str, Any]:
        """For a footer and the manifest."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Back from the manifest or a footer."""
        pairs = {key: tuple(content[key]) if content[key] else None for key in ("shortest", "longest")}
        return cls(**{**content, **pairs})


def part_name(rows: Range) -> str:
    """data/part-SSSSS-FFFFFFFFFFFF-LLLLLLLLLLLL.parquet: shard, first row, last row + 1."""
    return f"{name_before(rows.shard, rows.start)}-{rows.stop:012d}.parquet"


def name_before(shard: int, start: int) -> str:
    """A string that sorts before the names of the parts of a shard from a row on."""
    return f"{DATA_PREFIX}/part-{shard:05d}-{start:012d}"


def list_ranges(storage: Storage, splits: Sequence[str] = ()) -> Iterator[tuple[Range, int]]:
    """(range, bytes) of every committed part of an output; other objects are passed over.

    Args:
        storage: of the output.
        splits: names at which the listing may be cut, to be fetched in parallel.
    """
    for found in storage.list(DATA_PREFIX, splits):
        if rows := parse_name(found.name):
            yield rows, found.size


def parse_name(name: str) -> Range | None:
    """The rows that a part's name says; None where it is no part's."""
    match = _NAME.fullmatch(name)
    return Range(*map(int, match.groups())) if match else None


def write_part(
    storage: Storage,
    rows: Range,
    table: pa.Table,
    fingerprint: str,
    counts: dict[str, int] | None = None,
) -> Part:
    """Commit a part, or find that it is committed already.

    Returns:
        The part that is committed now: this one, or the one of another worker of the same job that was first.

    Raises:
        RunError: the store failed, or another job's part has this name.
    """
    part, content = encode_part(rows, table, fingerprint, counts)
    if storage.create(part.name, content):
        return part
    there = read_part(storage, rows)
    if there.fingerprint != fingerprint:
        msg = f"{storage.uri}/{part.name} was written by another job. Choose another output.path"
        raise RunError(msg)
    return there


def encode_part(
    rows: Range,
    table: pa.Table,
    fingerprint: str,
    counts: dict[str, int] | None = None,
) -> tuple[Part, bytes]:
    """The Parquet file of a part. Vectors: byte stream split for float32, no dictionary, no statistics; zstd 1.

    Single values, kept or computed, have dictionary and statistics, which readers filter by.
    """
    plain, split = _feature_leaves(table.schema)
    leaves = _leaves(table.schema)
    buffer = io.BytesIO()
    with pq.ParquetWriter(
        buffer,
        table.schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=[leaf for leaf in leaves if leaf not in plain],  # pyright: ignore[reportArgumentType]
        write_statistics=[leaf for leaf in leaves if leaf not in plain],  # pyright: ignore[reportArgumentType]
        column_encoding=dict.fromkeys(split, "BYTE_STREAM_SPLIT"),
    ) as writer:
        writer.write_table(table)
        # All pages are in the buffer now and the footer is not: their hash can stand in the footer.
        data = buffer.getbuffer()
        part = Part(
            shard=rows.shard,
            start=rows.start,
            stop=rows.stop,
            fingerprint=fingerprint,
            data_bytes=len(data),
            data_sha256=hashlib.sha256(data).hexdigest(),
            counts=counts or {},
            **_counts(table),
        )
        data.release()
        writer.add_key_value_metadata({PART_KEY: json.dumps(part.to_json())})
    content = buffer.getvalue()
    return _with_file(part, content, len(content)), content


def read_part(storage: Storage, rows: Range, file_bytes: int | None = None) -> Part:
    """What a committed part records in its footer.

    Raises:
        RunError: the part is gone, or its footer can't be read.
    """
    footer, tail = read_footer(storage, part_name(rows), file_bytes)
    try:
        part = Part.from_json(json.loads((footer.metadata or {})[PART_KEY]))
    except (KeyError, TypeError, ValueError) as e:
        msg = f"{storage.uri}/{part_name(rows)} does not have the footer of a part: {type(e).__name__} {e}"
        raise RunError(msg) from e
    return _with_file(part, tail, file_bytes or len(tail))


def _with_file(part: Part, tail: bytes, file_bytes: int) -> Part:
    """A part's record with what it can't say of itself, from the last bytes of its file."""
    footer = tail[part.data_bytes - file_bytes :]
    return replace(part, file_bytes=file_bytes, footer_sha256=hashlib.sha256(footer).hexdigest())


def read_footer(storage: Storage, name: str, file_bytes: int | None = None) -> tuple[pq.FileMetaData, bytes]:
    """(footer, last bytes of the file) of a Parquet object; where its size is known, without reading its data.

    Raises:
        RunError: the object is gone or is not Parquet.
    """
    tail = storage.read(name, max(0, (file_bytes or 0) - _TAIL_BYTES), file_bytes)
    if tail is not None and file_bytes is not None:
        footer_bytes = int.from_bytes(tail[-_MAGIC_BYTES:-4], "little") + _MAGIC_BYTES
        if footer_bytes > len(tail):
            tail = storage.read(name, max(0, file_bytes - footer_bytes), file_bytes)
    if tail is None:
        msg = f"{storage.uri}/{name} is gone"
        raise RunError(msg)
    try:
        return pq.read_metadata(pa.BufferReader(tail)), tail
    except (pa.ArrowException, OSError) as e:
        msg = f"{storage.uri}/{name} is not a whole Parquet file: {one_line(e)}"
        raise RunError(msg) from e


def _counts(table: pa.Table) -> dict[str, Any]:
    tokens = table["num_tokens"].combine_chunks()
    counts = tokens.fill_null(0).to_numpy(zero_copy_only=False)
    rows = table["row"].to_numpy()
    good = np.flatnonzero(tokens.is_valid().to_numpy(zero_copy_only=False))
    ends = [int(good[pick(counts[good])]) for pick in (np.argmin, np.argmax)] if len(good) else []
    shortest, longest = [(int(rows[at]), int(counts[at])) for at in ends] or (None, None)
    return {
        "num_tokens": int(counts.sum(dtype=np.int64)),
        "num_errors": len(table) - table["error"].null_count,
        "num_truncated": int(table["truncated"].fill_null(False).to_numpy(zero_copy_only=False).sum()),  # noqa: FBT003
        "shortest": shortest,
        "longest": longest,
    }


@lru_cache(maxsize=8)
def _leaves(schema: pa.Schema) -> list[str]:
    """Paths of the Parquet columns of a schema."""
    buffer = io.BytesIO()
    pq.write_table(schema.empty_table(), buffer)
    footer = pq.read_metadata(pa.BufferReader(buffer.getvalue()))
    return [footer.schema.column(index).path for index in range(footer.num_columns)]


def _feature_leaves(schema: pa.Schema) -> tuple[set[str], list[str]]:
    """(leaves of vector columns, those of them that hold float32 or float64).

    Byte stream split stays away from float16: DuckDB and polars have releases that can't read it there.
    """
    described = json.loads((schema.metadata or {}).get(b"varve", b"{}"))
    dtypes = {column["name"]: column["dtype"] for column in described.get("columns", ())}
    computed = ((column["name"], column["type"].partition("[")) for column in described.get("computed", ()))
    dtypes |= {name: dtype for name, (dtype, is_vector, _) in computed if is_vector}
    leaves = [leaf for leaf in _leaves(schema) if leaf.split(".")[0] in dtypes]
    return set(leaves), [leaf for leaf in leaves if dtypes[leaf.split(".")[0]] in {"float32", "float64"}]
