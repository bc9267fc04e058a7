"""Joins one bucket: which rows of the source's files are new or changed, and which keys left the source.

    PREFIX/selected-SHA256    positions of the selected rows of a bucket, int64 little endian, file by file

Knows nothing of files' paths or of how buckets are written. Invariant: memory is that of one bucket; what the driver
receives has the size of the files, not of the rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.backfill.keys.key_buckets import Buckets, create_named
from varve.backfill.keys.key_columns import FILE, KEY, NUM_EXAMPLES, POSITION
from varve.backfill.keys.key_hash import sort_order
from varve.backfill.keys.stale_keys import write_gone_keys
from varve.lake.text_hash import HASH_TYPE, TEXT_HASH
from varve.storage.object_store import Storage

_PLACES = pa.schema([(FILE, pa.int32()), (POSITION, pa.int64())])
_HASHES = pa.schema([(TEXT_HASH, HASH_TYPE)])


@dataclass(frozen=True, slots=True)
class Repeats:
    """Keys that several rows of the source have.

    Attributes:
        num_keys: of them.
        examples: (key, numbers of the files that hold it) of the least of them.
    """

    num_keys: int = 0
    examples: tuple[tuple[Any, tuple[int, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class JoinedBucket:
    """What was found in a bucket.

    Attributes:
        bucket: its number.
        counts: "new", "changed", "unchanged" and "removed" rows.
        name: of the object with the positions; empty if no row is selected.
        files: (S,) int32 numbers of the files with selected rows, ascending.
        stops: (S,) int64 number of positions in the object up to and with each of these files.
        repeats: keys with several rows.
        num_suspects: keys of added files that the destination has and no removed file held.
    """

    bucket: int
    counts: dict[str, int]
    name: str
    files: NDArray[np.int32]
    stops: NDArray[np.int64]
    repeats: Repeats
    num_suspects: int


@dataclass(frozen=True, slots=True)
class BucketJoin:
    """Joins the buckets of these sides; called with a bucket's number.

    Attributes:
        storage: of the run.
        prefix: folder of the keys that left the source.
        temporary: folder of the buckets.
        added: rows of the source's files that are new or, if `gone_from` is "destination" or None, of all of its files.
        removed: keys of the files that left the source.
        destination: keys and hashes of the destination.
        gone_from: the side whose keys leave the features unless an added file holds them; None: none.
    """

    storage: Storage
    prefix: str
    temporary: str
    added: Buckets
    removed: Buckets | None
    destination: Buckets
    gone_from: Literal["removed", "destination"] | None

    def __call__(self, bucket: int) -> JoinedBucket:
        """Join a bucket."""
        added = self.added.read(self.storage, bucket)
        removed = self.removed.read(self.storage, bucket) if self.removed else []
        destination = self.destination.read(self.storage, bucket)
        keys = KeyCodes([_column(side, KEY) for side in (added, removed, destination)])
        in_added, in_removed, in_destination = keys.codes
        is_new, is_changed = _compare(in_added, added, in_destination, destination, len(keys.values))
        places = pa.concat_tables([_PLACES.empty_table(), *(each.select(_PLACES.names) for each in added)])
        name, files, stops = self._write_positions(places.filter(pa.array(is_new | is_changed)))
        gone = self._gone_keys(keys)
        write_gone_keys(self.storage, self.prefix, bucket, gone)
        num_new, num_changed = int(is_new.sum()), int(is_changed.sum())
        counts = {"new": num_new, "changed": num_changed, "unchanged": len(in_added) - num_new - num_changed}
        is_suspect = keys.mask(in_added) & keys.mask(in_destination) & ~keys.mask(in_removed)
        num_suspects = 0 if self.removed is None else int(is_suspect.sum())
        repeats = find_repeats(keys.values, in_added, places[FILE].to_numpy())
        return JoinedBucket(bucket, {**counts, "removed": len(gone)}, name, files, stops, repeats, num_suspects)

    def _gone_keys(self, keys: "KeyCodes") -> pa.Array:
        if self.gone_from is None:
            return keys.values.slice(0, 0)
        in_added, in_removed, in_destination = keys.codes
        before = in_removed if self.gone_from == "removed" else in_destination
        return keys.values.filter(pa.array(keys.mask(before) & ~keys.mask(in_added)))

    def _write_positions(self, places: pa.Table) -> tuple[str, NDArray[np.int32], NDArray[np.int64]]:
        numbers, counts = np.unique(places[FILE].to_numpy(), return_counts=True)
        content = places[POSITION].to_numpy().astype("<i8").tobytes()  # in the order of files, as they were read
        name = create_named(self.storage, f"{self.temporary}/selected", content) if content else ""
        return name, numbers.astype(np.int32), np.cumsum(counts)


@dataclass(frozen=True, slots=True)
class RepeatSearch:
    """Finds keys that several rows of the source have; called with a bucket's number.

    Attributes:
        storage: of the run.
        added: keys and files of rows.
        unread: likewise, of files that were not compared; their numbers follow those of the added ones.
    """

    storage: Storage
    added: Buckets
    unread: Buckets | None = None

    def __call__(self, bucket: int) -> Repeats:
        """Search a bucket."""
        added = self.added.read(self.storage, bucket)
        unread = self.unread.read(self.storage, bucket) if self.unread else []
        keys = KeyCodes([_column(added, KEY), _column(unread, KEY)])
        files = [_column(added, FILE).to_numpy(), _column(unread, FILE).to_numpy() + len(self.added.files)]
        return find_repeats(keys.values, np.concatenate(keys.codes), np.concatenate(files))


class KeyCodes:
    """Numbers for keys: equal keys of several sides have the same one.

    Attributes:
        values: (K,) the distinct keys.
        codes: for each side, (rows,) int32 the number of each row's key.
    """

    def __init__(self, sides: Sequence[pa.Array]) -> None:
        """Number the keys."""
        stored = next((side.type for side in sides if len(side)), pa.int64())
        filled = [side.cast(stored) for side in sides if len(side)] or [pa.array([], stored)]
        whole = pa.concat_arrays(filled).dictionary_encode()
        self.values: pa.Array = whole.dictionary
        self.codes: list[NDArray[np.int32]] = []
        codes, first = whole.indices.to_numpy(), 0
        for side in sides:
            self.codes.append(codes[first : first + len(side)])
            first += len(side)

    def mask(self, codes: NDArray[np.int32]) -> NDArray[np.bool_]:
        """(K,) which keys are among these."""
        mask = np.zeros(len(self.values), bool)
        mask[codes] = True
        return mask


def find_repeats(values: pa.Array, codes: NDArray[np.int32], files: NDArray[np.int32]) -> Repeats:
    """The keys that several rows have.

    Args:
        values: (K,) the keys.
        codes: (R,) key of each row.
        files: (R,) file of each row.
    """
    repeated = np.flatnonzero(np.bincount(codes, minlength=len(values)) > 1)
    if not len(repeated):
        return Repeats()
    keys = values.take(pa.array(repeated))
    first = sort_order(keys).to_numpy()[:NUM_EXAMPLES]
    places = (tuple(sorted(set(files[codes == code].tolist()))) for code in repeated[first])
    return Repeats(len(repeated), tuple(zip(keys.take(pa.array(first)).to_pylist(), places, strict=True)))


def _compare(
    in_added: NDArray[np.int32],
    added: list[pa.Table],
    in_destination: NDArray[np.int32],
    destination: list[pa.Table],
    num_keys: int,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(rows of the added files,) whether they are new, whether their hash is another one."""
    rows = np.full(num_keys, -1, np.int64)  # of the destination, for each key
    rows[in_destination] = np.arange(len(in_destination))
    found = rows[in_added]
    is_new, is_changed = found < 0, np.zeros(len(in_added), bool)
    if not is_new.all():
        was, now = _hashes(destination)[found[~is_new]], _hashes(added)[~is_new]
        is_changed[~is_new] = (was != now).any(axis=1)
    return is_new, is_changed


def _column(tables: list[pa.Table], name: str) -> pa.Array:
    if not tables:
        return pa.array([], _PLACES.field(name).type if name in _PLACES.names else pa.int64())
    return pa.concat_tables([table.select([name]) for table in tables])[name].combine_chunks()


def _hashes(tables: list[pa.Table]) -> NDArray[np.uint64]:
    """(R, 2) the hashes of rows as two numbers each."""
    column = pa.concat_tables([_HASHES.empty_table(), *(each.select([TEXT_HASH]) for each in tables)])[TEXT_HASH]
    hashes = column.combine_chunks()
    start = 2 * hashes.offset
    return np.frombuffer(hashes.buffers()[1] or b"", np.uint64)[start : start + 2 * len(hashes)].reshape(-1, 2)
