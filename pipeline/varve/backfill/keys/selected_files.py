"""Gathers the selected rows of each source file out of the joined buckets, and writes their positions.

Knows nothing of keys. Invariants: shards have the order of the files; a file all of whose rows are selected needs no
positions; the driver holds a few numbers for each pair of a file and a bucket, no rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from varve.backfill.keys.bucket_join import JoinedBucket
from varve.backfill.keys.key_buckets import read_slices
from varve.backfill.keys.key_columns import FileKeys
from varve.engine.parallel import Spread
from varve.errors import RunError
from varve.lake.table import TableFile
from varve.source.row_selection import SelectedFile, encode_positions, rows_name
from varve.storage.object_store import Storage

_BYTES = 8  # of a position


@dataclass(frozen=True, slots=True)
class _ShardRows:
    """Where the positions of a shard are: rows [start, stop) of each of these objects."""

    shard: int
    names: tuple[str, ...]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]


def whole_files(files: Sequence[TableFile], counted: Sequence[FileKeys]) -> tuple[SelectedFile, ...]:
    """All rows of all files that have rows."""
    pairs = zip(files, counted, strict=True)
    return tuple(SelectedFile(file.path, file.identity, each.num_rows) for file, each in pairs if each.num_rows)


def gather_files(
    files: Sequence[TableFile],
    counted: Sequence[FileKeys],
    joined: Sequence[JoinedBucket],
    storage: Storage,
    prefix: str,
    spread: Spread,
) -> tuple[SelectedFile, ...]:
    """The files with selected rows; writes the positions of a file unless all of its rows are selected.

    Args:
        files: F files in the order of shards.
        counted: (F,) what was read of each.
        joined: the buckets in their order.
        storage: of the run.
        prefix: folder of the positions.
        spread: runs the tasks.

    Raises:
        RunError: the store failed.
    """
    numbers, buckets, starts, stops = _flatten(joined)
    num_selected = np.zeros(len(files), np.int64)
    np.add.at(num_selected, numbers, stops - starts)
    shards = np.flatnonzero(num_selected)
    is_partial = num_selected < np.array([each.num_rows for each in counted], np.int64)
    order = np.argsort(numbers, kind="stable")
    first, last = np.searchsorted(numbers[order], shards), np.searchsorted(numbers[order], shards, side="right")
    items: list[_ShardRows] = []
    for shard in np.flatnonzero(is_partial[shards]).tolist():
        mine = order[first[shard] : last[shard]]
        items.append(_ShardRows(shard, tuple(joined[at].name for at in buckets[mine]), starts[mine], stops[mine]))
    hashes = dict(spread(partial(_write_positions, storage=storage, prefix=prefix), items))
    return tuple(
        SelectedFile(
            files[number].path,
            files[number].identity,
            int(num_selected[number]),
            shard in hashes,
            hashes.get(shard, ""),
        )
        for shard, number in enumerate(shards.tolist())
    )


def _flatten(joined: Sequence[JoinedBucket]) -> tuple[NDArray[np.int64], ...]:
    """(P,) file, place of the bucket, first and last + 1 position in its object, of each pair of file and bucket."""
    numbers = [each.files for each in joined]
    buckets = np.repeat(np.arange(len(joined)), [len(each) for each in numbers])
    stops = [each.stops for each in joined]
    starts = [np.append(0, each)[:-1] for each in stops]
    empty = np.array([], np.int64)
    return tuple(np.concatenate([empty, *each]).astype(np.int64) for each in (numbers, [buckets], starts, stops))


def _write_positions(rows: _ShardRows, *, storage: Storage, prefix: str) -> tuple[int, str]:
    """Write the positions of a shard; returns (shard, their hash)."""
    bounds = zip(rows.names, (rows.starts * _BYTES).tolist(), (rows.stops * _BYTES).tolist(), strict=True)
    slices = read_slices(storage, list(bounds))
    positions = np.sort(np.frombuffer(b"".join(slices), "<i8").astype(np.int64))
    content, digest = encode_positions(positions)
    name = rows_name(prefix, rows.shard)
    if not storage.create(name, content):
        existing = storage.read(name) or b""
        if not existing or not np.array_equal(pq.read_table(pa.BufferReader(existing))["position"], positions):
            msg = f"{storage.uri}/{name} holds other rows than this run found: delete {storage.uri} and run again"
            raise RunError(msg)
    return rows.shard, digest
