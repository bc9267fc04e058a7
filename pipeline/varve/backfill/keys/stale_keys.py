"""Sorted files of keys whose rows in the destination are stale: below a run's folder, column `key`.

    _varve/diff/HEAD/gone-BBBBB.parquet    keys that left the source, of a bucket
    _varve/keys/SHA256.parquet             keys of some parts of the run

Knows nothing of the destination's files. Invariants: keys are sorted within a file and its row groups have statistics,
so that keys of a range are read without the others; an existing file is never replaced.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from varve.backfill.keys.key_columns import KEY
from varve.backfill.keys.key_hash import plain_keys, sort_order
from varve.backfill.keys.key_ranges import KeyRange, KeyRanges
from varve.engine.parallel import Spread
from varve.errors import RunError, first_line
from varve.storage.object_file import ObjectFile
from varve.storage.object_store import Storage

_GROUP_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A file of sorted keys.

    Attributes:
        name: below the run's folder.
        num_bytes: its size.
        key_range: least and greatest key.
    """

    name: str
    num_bytes: int
    key_range: KeyRange


def gone_prefix(prefix: str) -> str:
    """What names of files of keys that left the source begin with, below the folder of a selection."""
    return f"{prefix}/gone-"


def write_gone_keys(storage: Storage, prefix: str, bucket: int, keys: pa.Array) -> None:
    """Write the keys of a bucket that left the source; nothing without keys.

    Raises:
        RunError: the store failed, or the file exists with other keys.
    """
    if len(keys):
        write_keys(storage, f"{gone_prefix(prefix)}{bucket:05d}.parquet", keys)


def write_keys(storage: Storage, name: str, keys: pa.Array) -> KeyFile:
    """Write keys, which are sorted here.

    Raises:
        RunError: the store failed, or the file exists with other keys.
    """
    ordered = keys.take(sort_order(keys))
    table, buffer = pa.table({KEY: ordered}), io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=_GROUP_ROWS)
    content = buffer.getvalue()
    if not storage.create(name, content):
        content = storage.read(name) or b""
        if not content or not pq.read_table(pa.BufferReader(content))[KEY].equals(table[KEY]):
            msg = f"{storage.uri}/{name} holds other keys than this run found: delete {storage.uri} and run again"
            raise RunError(msg)
    return KeyFile(name, len(content), (ordered[0].as_py(), ordered[-1].as_py()))


def list_gone_keys(storage: Storage, prefix: str, spread: Spread) -> list[KeyFile]:
    """The files of keys that left the source, in the order of their names.

    Args:
        storage: of the run.
        prefix: of the selection.
        spread: reads the footers.

    Raises:
        RunError: the store failed, or a file cannot be read.
    """
    found = [each for each in storage.list(prefix) if each.name.startswith(gone_prefix(prefix))]
    described = spread(partial(_describe, storage), [(each.name, each.size) for each in found])
    return sorted(described, key=lambda each: each.name)


def _describe(storage: Storage, item: tuple[str, int]) -> KeyFile:
    name, num_bytes = item
    with _opened(storage, name, num_bytes) as parquet:
        ranges = [_group_range(parquet, group, KEY) for group in range(parquet.num_row_groups)]
    first, last = ranges[0], ranges[-1]
    return KeyFile(name, num_bytes, (first[0], last[1]) if first and last else None)


def read_keys_in(storage: Storage, name: str, column: str, num_bytes: int, within: KeyRange) -> Iterator[pa.Array]:
    """Keys of a Parquet file, of the row groups that overlap a range.

    Args:
        storage: of the run.
        name: of the file.
        column: with the keys.
        num_bytes: size of the file.
        within: the range; None: all keys.

    Raises:
        RunError: the file is missing or cannot be read.
    """
    wanted = KeyRanges([within])
    with _opened(storage, name, num_bytes) as parquet:
        for group in range(parquet.num_row_groups):
            if wanted.overlap(_group_range(parquet, group, column)):
                keys = parquet.read_row_group(group, columns=[column], use_threads=False)[column]
                yield plain_keys(keys, column)


@contextmanager
def _opened(storage: Storage, name: str, num_bytes: int) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(ObjectFile(storage, name, num_bytes), pre_buffer=True) as parquet:
            yield parquet
    except (pa.ArrowException, OSError) as e:
        msg = f"{storage.uri}/{name} cannot be read: {first_line(e)}. Delete it and run the same command again"
        raise RunError(msg) from e


def _group_range(parquet: pq.ParquetFile, group: int, column: str) -> KeyRange:
    """The range of a row group; None if the footer has none."""
    paths = [parquet.schema.column(leaf).path for leaf in range(len(parquet.schema))]
    found: Any = parquet.metadata.row_group(group).column(paths.index(column)).statistics
    return (found.min, found.max) if found is not None and found.has_min_max else None
