"""Distributes the rows of files over buckets by the hash of their key, as objects of a run's folder.

    PREFIX/SIDE-SHA256    the rows of some files: for each bucket an Arrow stream

Knows nothing of what is done with a bucket. Invariants: a bucket holds all rows of its keys, whatever the table, in
the order of files and rows; an object is named by its content, so tasks that are repeated and drivers that work at once
write the same objects; memory is that of `CHUNK_ROWS` rows of keys and hashes.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.backfill.keys.key_columns import KEY, FileKeys, Side, read_keys
from varve.backfill.keys.key_hash import bucket_numbers, hash_keys
from varve.engine.parallel import Spread
from varve.errors import RunError
from varve.lake.table import TableFile, VersionExpiredError
from varve.storage.object_store import Storage

BUCKET_ROWS = 1_000_000  # of all sides together; a task joins a bucket in memory
_MAX_BUCKETS = 65_536
CHUNK_ROWS = 500_000  # of an object
CHUNK_BYTES = 512 * 2**20  # of the files of a task
_LEAST_ROW_BYTES = 64  # of a file whose rows are not known
_THREADS = 8  # requests of a task to a store


@dataclass(frozen=True, slots=True)
class Buckets:
    """The rows of one side.

    Attributes:
        names: of O objects.
        bounds: (O, B + 1) where the stream of each bucket begins in each object, in bytes.
        files: what was read of each file.
        is_expired: a file was gone, so the rows are not complete.
    """

    names: tuple[str, ...]
    bounds: NDArray[np.int64]
    files: tuple[FileKeys, ...]
    is_expired: bool = False

    def read(self, storage: Storage, bucket: int) -> list[pa.Table]:
        """The rows of a bucket.

        Raises:
            RunError: an object is missing or cannot be read.
        """
        starts, stops = self.bounds[:, bucket], self.bounds[:, bucket + 1]
        streams = [(self.names[at], int(starts[at]), int(stops[at])) for at in np.flatnonzero(stops > starts)]
        return [pa.ipc.open_stream(content).read_all() for content in read_slices(storage, streams)]


def read_slices(storage: Storage, slices: Sequence[tuple[str, int, int]]) -> list[bytes]:
    """The bytes [start, stop) of objects: (name, start, stop) of each.

    Raises:
        RunError: an object is missing or cannot be read.
    """

    def read(each: tuple[str, int, int]) -> bytes:
        if (content := storage.read(*each)) is None:
            msg = f"{storage.uri}/{each[0]} is missing: run the same command again"
            raise RunError(msg)
        return content

    if storage.is_local or len(slices) < 2:
        return [read(each) for each in slices]
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(read, slices))


def create_named(storage: Storage, prefix: str, content: bytes) -> str:
    """Write an object under a name that its content gives; returns the name."""
    name = f"{prefix}-{hashlib.sha256(content).hexdigest()[:32]}"
    storage.create(name, content)
    return name


def count_buckets(files: Sequence[TableFile]) -> int:
    """The number of buckets for the rows of all sides."""
    return min(_MAX_BUCKETS, max(1, -(-sum(map(_about_rows, files)) // BUCKET_ROWS)))


def write_buckets(
    side: Side, files: Sequence[TableFile], num_buckets: int, storage: Storage, prefix: str, spread: Spread
) -> Buckets:
    """Read the files of a side and write its buckets.

    Args:
        side: what is read.
        files: that are read; their numbers are the places in this sequence.
        num_buckets: B, the same for all sides.
        storage: of the run.
        prefix: folder of the objects.
        spread: runs the tasks.

    Raises:
        JobError: the keys have a type that cannot be one.
        RunError: a file cannot be read, or the store failed.
    """
    work = partial(_write_group, side=side, num_buckets=num_buckets, storage=storage, prefix=prefix)
    groups = list(group_files(files))
    written = sorted(spread(work, groups), key=lambda result: result[0])
    names = tuple(name for _, objects, _, _ in written for name, _ in objects)
    bounds = [each for _, objects, _, _ in written for _, each in objects]
    return Buckets(
        names,
        np.array(bounds, np.int64).reshape(len(names), num_buckets + 1),
        tuple(file for _, _, counted, _ in written for file in counted),
        any(is_expired for _, _, _, is_expired in written),
    )


def group_files(files: Sequence[TableFile]) -> Iterator[list[tuple[int, TableFile]]]:
    """Files with their numbers, in groups of about the rows of an object."""
    group: list[tuple[int, TableFile]] = []
    rows = size = 0
    for number, file in enumerate(files):
        if group and (rows + _about_rows(file) > CHUNK_ROWS or size + file.file_bytes > CHUNK_BYTES):
            yield group
            group, rows, size = [], 0, 0
        group.append((number, file))
        rows, size = rows + _about_rows(file), size + file.file_bytes
    if group:
        yield group


def _about_rows(file: TableFile) -> int:
    return file.file_bytes // _LEAST_ROW_BYTES if file.num_rows is None else file.num_rows


_Object = tuple[str, NDArray[np.int64]]


def _write_group(
    group: list[tuple[int, TableFile]], *, side: Side, num_buckets: int, storage: Storage, prefix: str
) -> tuple[int, list[_Object], list[FileKeys], bool]:
    """(number of the first file, objects, what was read of each file, whether a file was gone)."""
    objects: list[_Object] = []
    counted: list[FileKeys] = []
    chunk, num_rows = list[pa.Table](), 0
    write = partial(_write_chunk, num_buckets=num_buckets, storage=storage, prefix=f"{prefix}/{side.name}")
    try:
        for number, file in group:
            counted.append(FileKeys(number))
            for rows in read_keys(side, file, counted[-1]):
                if num_rows + len(rows) > CHUNK_ROWS:
                    objects += write(chunk)
                    chunk, num_rows = [], 0
                chunk.append(rows)
                num_rows += len(rows)
    except VersionExpiredError:
        if not side.may_expire:
            raise
        return group[0][0], [], [], True
    return group[0][0], objects + write(chunk), counted, False


def _write_chunk(chunk: list[pa.Table], *, num_buckets: int, storage: Storage, prefix: str) -> list[_Object]:
    """Write rows as one object; nothing without rows."""
    if not any(map(len, chunk)):
        return []
    rows = pa.concat_tables(chunk).combine_chunks()
    buckets = bucket_numbers(hash_keys(rows[KEY].combine_chunks()), num_buckets)
    rows = rows.take(pa.array(np.argsort(buckets, kind="stable")))
    last_rows = np.cumsum(np.bincount(buckets, minlength=num_buckets))
    sink, bounds, first = io.BytesIO(), [0], 0
    for last in last_rows.tolist():
        if last > first:
            with pa.ipc.new_stream(sink, rows.schema) as stream:
                stream.write_table(rows.slice(first, last - first))
        bounds.append(sink.tell())
        first = last
    return [(create_named(storage, prefix, sink.getvalue()), np.array(bounds, np.int64))]
