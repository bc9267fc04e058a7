"""Reads the keys of a table's files, with the hash and the place of each row where they are needed.

Knows nothing of buckets. Invariants: rows without a key are counted and not returned; keys have the form of `key_hash`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from varve.backfill.keys.key_hash import plain_keys
from varve.errors import RunError
from varve.lake.table import Table, TableFile
from varve.lake.text_hash import HASH_BYTES, HASH_TYPE, TEXT_HASH, hash_texts

KEY, FILE, POSITION = "key", "file", "position"
NUM_EXAMPLES = 5
_NO_COLUMNS = pa.schema([])


@dataclass(frozen=True, slots=True)
class Side:
    """What is read of the files of one version.

    Attributes:
        name: of the objects with its rows.
        table: that is read.
        version: of it.
        key: name of the key column.
        texts: text columns that are read to compute the hash of each row; empty: they are not read.
        has_hash: whether the table holds hashes, which are read.
        kept: kept columns whose values are part of the hash, with the types of the feature table; nested ones are not.
        is_located: whether the file and the position of each row are kept.
        may_expire: whether a missing file is a result, not an error.
    """

    name: str
    table: Table
    version: int | None
    key: str
    texts: tuple[str, ...] = ()
    has_hash: bool = False
    kept: pa.Schema = _NO_COLUMNS
    is_located: bool = False
    may_expire: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that are read."""
        return tuple(dict.fromkeys((self.key, *self.texts, *((TEXT_HASH,) if self.has_hash else ()), *self.kept.names)))


@dataclass(slots=True)
class FileKeys:
    """What was read of a file.

    Attributes:
        number: of the file in its side.
        num_rows: live rows.
        num_nulls: rows without a key.
        null_rows: positions of the first of them.
    """

    number: int
    num_rows: int = 0
    num_nulls: int = 0
    null_rows: list[int] = field(default_factory=list)

    def add(self, keys: pa.Array) -> None:
        """Count the next rows."""
        if keys.null_count:
            found = np.flatnonzero(keys.is_null().to_numpy(zero_copy_only=False))[:NUM_EXAMPLES] + self.num_rows
            self.null_rows = [*self.null_rows, *found.tolist()][:NUM_EXAMPLES]
            self.num_nulls += keys.null_count
        self.num_rows += len(keys)


def read_keys(side: Side, file: TableFile, counted: FileKeys) -> Iterator[pa.Table]:
    """Columns `key` and, as the side demands, `text_hash`, `file` and `position` of the rows that have a key.

    Args:
        side: what is read.
        file: of its table.
        counted: to which the rows are added.

    Raises:
        JobError: the keys have a type that cannot be one.
        RunError: the file is gone or cannot be read, or its hashes are not of this kind.
    """
    for table in side.table.read(side.version, file, side.columns):
        keys = plain_keys(table[side.key], side.key)
        columns: dict[str, pa.Array] = {KEY: keys}
        if side.texts:
            columns[TEXT_HASH] = _with_kept(hash_texts([table[name] for name in side.texts]), table, side.kept)
        elif side.has_hash:
            columns[TEXT_HASH] = _with_kept(_hashes(table[TEXT_HASH], file), table, side.kept)
        if side.is_located:
            columns[FILE] = pa.array(np.full(len(keys), counted.number, np.int32))
            columns[POSITION] = pa.array(np.arange(counted.num_rows, counted.num_rows + len(keys)))
        counted.add(keys)
        rows = pa.table(columns)
        yield rows.filter(keys.is_valid()) if keys.null_count else rows


def comparable(schema: pa.Schema) -> pa.Schema:
    """The columns whose values can be part of a hash: all that Arrow can write as text."""
    fields = [field for field in schema if not pa.types.is_nested(field.type)]
    return pa.schema(fields)


def _with_kept(hashes: pa.Array, table: pa.Table, kept: pa.Schema) -> pa.Array:
    """Hashes of the text and of the kept columns together."""
    if not kept.names:
        return hashes
    values = [_as_text(table[field.name].combine_chunks().cast(field.type)) for field in kept]
    return hash_texts([hashes.cast(pa.binary()), *values])


def _as_text(values: pa.Array) -> pa.Array:
    is_binary = pa.types.is_binary(values.type) or pa.types.is_fixed_size_binary(values.type)
    return values.cast(pa.binary() if is_binary else pa.string())


def _hashes(column: pa.ChunkedArray, file: TableFile) -> pa.Array:
    """The hashes of a feature table; null, which equals no text's hash, becomes zeros."""
    try:
        hashes = column.combine_chunks().cast(HASH_TYPE)
    except pa.ArrowInvalid as e:
        msg = f"{file.path}: expected {HASH_BYTES} bytes in each {TEXT_HASH}: {e}. Set output.table to a new table"
        raise RunError(msg) from e
    return pc.fill_null(hashes, pa.scalar(bytes(HASH_BYTES), HASH_TYPE)) if hashes.null_count else hashes
