"""Encodes the features of a range of rows as the Parquet file of one part, and reads its record back.

Knows nothing of models or Ray. Invariants: a part holds exactly the rows that its name gives; its footer records what
the manifest needs (rows, tokens, errors, a hash of the data), so a run keeps no other state. The hash of the footer
itself is computed when the file is written or read.
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
from varve.monitoring.row_errors import count_errors
from varve.output.json_text import parse_object
from varve.output.part_form import PART_KEY, SCHEMA_KEY, encode_schema
from varve.output.part_layout import PartLayout, key_range, leaf_paths, parquet_options
from varve.output.schema import METADATA_KEY
from varve.ranges import Range
from varve.storage.object_store import Storage

DATA_PREFIX = "data"

_NAME = re.compile(r"data/part-(\d{5,})-(\d{12})-(\d{12})\.parquet")
# One request reads a footer of up to this size; the footer of a part with a hundred columns has about 60 kB.
_TAIL_BYTES = 64 * 1024
_PAIRS = ("shortest", "longest", "key_range")
_MAGIC_BYTES = 8  # footer length and "PAR1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The record of a committed part: its range and the content of its footer."""

    shard: int
    start: int
    stop: int
    fingerprint: str
    num_tokens: int
    num_errors: int  # rows that failed
    num_null_texts: int = 0  # rows whose text is null
    num_truncated: int
    shortest: tuple[int, int] | None  # (row, tokens) of the text with fewest tokens; None if all rows have errors
    longest: tuple[int, int] | None
    data_bytes: int  # size of the file without its footer
    data_sha256: str  # of these bytes
    file_bytes: int = 0  # size of the whole file
    footer_sha256: str | None = None  # not in the footer itself; None in manifests of older versions
    counts: dict[str, int] = field(default_factory=dict)  # events, see `encoder.results.Counts`
    error_reasons: dict[str, int] = field(default_factory=dict)  # reason → rows, the most frequent ones
    key_range: tuple[Any, Any] | None = None  # least and greatest key, of parts of a lake table

    @property
    def range(self) -> Range:
        """The rows of the part."""
        return Range(self.shard, self.start, self.stop)

    @property
    def name(self) -> str:
        """The object's name below the output's path."""
        return part_name(self.range)

    def to_json(self) -> dict[str, Any]:
        """Return the fields, for a footer or the manifest."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Make a part from fields that `to_json` returned."""
        pairs = {key: tuple(content[key]) if content.get(key) else None for key in _PAIRS}
        return cls(**{**content, **pairs})


def part_name(rows: Range) -> str:
    """data/part-SSSSS-FFFFFFFFFFFF-LLLLLLLLLLLL.parquet: shard, first row, last row + 1."""
    return f"{name_prefix(rows.shard, rows.start)}-{rows.stop:012d}.parquet"


def name_prefix(shard: int, start: int) -> str:
    """The beginning of the name of the part that starts at this row; sorts before the names of all later parts."""
    return f"{DATA_PREFIX}/part-{shard:05d}-{start:012d}"


def list_ranges(storage: Storage, splits: Sequence[str] = ()) -> Iterator[tuple[Range, int]]:
    """Yield (range, bytes) of every committed part of an output; other objects are skipped.

    Args:
        storage: of the output.
        splits: names at which the listing is split, to be fetched in parallel.
    """
    for entry in storage.list(DATA_PREFIX, splits):
        if rows := parse_name(entry.name):
            yield rows, entry.size


def parse_name(name: str) -> Range | None:
    """Return the rows that the name of a part gives; None for other names."""
    match = _NAME.fullmatch(name)
    rows = Range(*map(int, match.groups())) if match else None
    return rows if rows and part_name(rows) == name else None  # other spellings of the numbers are other files


def write_part(
    storage: Storage,
    rows: Range,
    table: pa.Table,
    fingerprint: str,
    counts: dict[str, int] | None = None,
    layout: PartLayout | None = None,
) -> Part:
    """Commit a part, unless it is committed already; `layout`: of the lake table that it is for.

    Returns:
        The committed part: this one, or that of another worker of the same job that was first.

    Raises:
        RunError: the store failed, or a part of another job has this name.
    """
    part, content = encode_part(rows, table, fingerprint, counts, layout)
    if storage.create(part.name, content):
        return part
    existing = read_part(storage, rows)
    if existing.fingerprint != fingerprint:
        msg = f"{storage.uri}/{part.name} was written by another job. Choose another output.path"
        raise RunError(msg)
    return existing


def encode_part(
    rows: Range,
    table: pa.Table,
    fingerprint: str,
    counts: dict[str, int] | None = None,
    layout: PartLayout | None = None,
) -> tuple[Part, bytes]:
    """Encode a table as Parquet; returns (the part's record, content of the file).

    Vectors have no dictionary and no statistics, float32 and float64 vectors are byte-stream-split. Other columns have
    dictionaries and statistics, for readers that filter by them. Compression is zstd, level 1.

    The ids of sparse vectors have neither: of 1,500 vectors of a SPLADE model they took 1.50 bytes each, with a
    dictionary 1.73, as DELTA_BINARY_PACKED 1.68. Byte-stream-split integers are smaller, but older readers reject them.
    """
    stored = layout.apply(table) if layout else table
    buffer = io.BytesIO()
    with pq.ParquetWriter(
        buffer, stored.schema, **(parquet_options(stored.schema) if layout else _part_options(table.schema))
    ) as writer:
        writer.write_table(stored)
        # The buffer now holds all pages but no footer, so the footer can record their hash.
        data = buffer.getbuffer()
        part = Part(
            shard=rows.shard,
            start=rows.start,
            stop=rows.stop,
            fingerprint=fingerprint,
            data_bytes=len(data),
            data_sha256=hashlib.sha256(data).hexdigest(),
            counts=counts or {},
            key_range=key_range(table[layout.key]) if layout else None,
            **count_rows(table),
        )
        data.release()
        if layout:
            writer.add_key_value_metadata({SCHEMA_KEY: encode_schema(table.schema)})
        writer.add_key_value_metadata({PART_KEY: json.dumps(part.to_json())})
    content = buffer.getvalue()
    return _add_file_fields(part, content, len(content)), content


def read_part(storage: Storage, rows: Range, file_bytes: int | None = None) -> Part:
    """Read the record of a committed part from its footer.

    Args:
        storage: of the output.
        rows: of the part.
        file_bytes: size of the file; if None, the whole file is read.

    Raises:
        RunError: the part is gone, or its footer cannot be read.
    """
    footer, tail = read_footer(storage, part_name(rows), file_bytes)
    try:
        part = Part.from_json(parse_object((footer.metadata or {})[PART_KEY]))
    except (KeyError, TypeError, ValueError) as e:
        msg = f"{storage.uri}/{part_name(rows)} does not have the footer of a part: {type(e).__name__} {e}"
        raise RunError(msg) from e
    return _add_file_fields(part, tail, file_bytes or len(tail))


def _add_file_fields(part: Part, tail: bytes, file_bytes: int) -> Part:
    """Add the fields that the footer cannot contain, given the last bytes of the file."""
    footer = tail[part.data_bytes - file_bytes :]
    return replace(part, file_bytes=file_bytes, footer_sha256=hashlib.sha256(footer).hexdigest())


def read_footer(storage: Storage, name: str, file_bytes: int | None = None) -> tuple[pq.FileMetaData, bytes]:
    """Read (footer, last bytes of the file) of a Parquet object; if its size is given, without its data.

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
        msg = f"{storage.uri}/{name} is not a complete Parquet file: {one_line(e)}"
        raise RunError(msg) from e


def count_rows(table: pa.Table) -> dict[str, Any]:
    """The fields of `Part` that are computed from its rows."""
    tokens = table["num_tokens"].combine_chunks()
    counts = tokens.fill_null(0).to_numpy(zero_copy_only=False)
    rows, errors = table["row"].to_numpy(), count_errors(table["error"])
    encoded = np.flatnonzero(tokens.is_valid().to_numpy(zero_copy_only=False))
    extremes = [int(encoded[pick(counts[encoded])]) for pick in (np.argmin, np.argmax)] if len(encoded) else []
    shortest, longest = [(int(rows[at]), int(counts[at])) for at in extremes] or (None, None)
    return {
        "num_tokens": int(counts.sum(dtype=np.int64)),
        "num_errors": errors.failures,
        "num_null_texts": errors.null_texts,
        "error_reasons": errors.reasons,
        "num_truncated": int(table["truncated"].fill_null(False).to_numpy(zero_copy_only=False).sum()),  # noqa: FBT003
        "shortest": shortest,
        "longest": longest,
    }


@lru_cache(maxsize=8)
def _part_options(schema: pa.Schema) -> dict[str, Any]:
    """Arguments of `ParquetWriter`."""
    vectors, split = _vector_leaves(schema)
    others = [leaf for leaf in leaf_paths(schema) if leaf not in vectors]
    return {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": others,
        "write_statistics": others,
        "column_encoding": dict.fromkeys(split, "BYTE_STREAM_SPLIT"),
    }


def _vector_leaves(schema: pa.Schema) -> tuple[set[str], list[str]]:
    """(leaves of vector columns, those to be byte-stream-split: float32 and float64).

    float16 is not split: some releases of DuckDB and polars cannot read it then.
    """
    described = json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))
    dtypes: dict[str, str] = {}
    for column in described.get("columns", ()):
        stored = {f"{column['name']}_ids": "int32", f"{column['name']}_weights": "float32"}
        dtypes |= stored if column.get("form") == "sparse" else {column["name"]: column["dtype"]}
    computed = ((column["name"], column["type"].partition("[")) for column in described.get("computed", ()))
    dtypes |= {name: dtype for name, (dtype, is_vector, _) in computed if is_vector}
    leaves = [leaf for leaf in leaf_paths(schema) if leaf.split(".")[0] in dtypes]
    return set(leaves), [leaf for leaf in leaves if dtypes[leaf.split(".")[0]] in {"float32", "float64"}]
