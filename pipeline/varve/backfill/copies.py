"""Copies files of the destination without their stale rows: rows that a run replaces, and rows whose key is gone.

Knows nothing of how rows were selected or encoded. Invariants: after a commit of the parts and the copies instead of
the removed files, each key of the run is in the destination once, whatever its head was; a copy's name and rows are a
function of the file and of the run, and an existing copy is never replaced; a task holds the keys of one file, of one
batch of stale keys and, only if some of them are in the file, its rows.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from varve.backfill.keys.key_hash import plain_keys
from varve.backfill.keys.key_ranges import KeyRange, KeyRanges
from varve.backfill.keys.part_keys import collect_part_keys
from varve.backfill.keys.stale_keys import KEY, KeyFile, list_gone_keys, read_keys_in
from varve.backfill.run_paths import run_path
from varve.engine.parallel import Spread
from varve.errors import RunError
from varve.lake.table import FeatureTable, NewFile, TableFile
from varve.output.part_layout import PartLayout, encode_table_file, key_range
from varve.source.row_selection import RowSelection
from varve.storage.object_store import Storage

_BATCH_KEYS = 1_000_000  # stale keys that are looked up at once


@dataclass(frozen=True, slots=True)
class Replacement:
    """What takes the place of files with stale rows.

    Attributes:
        adds: the copies, in the order of the files; a file without other rows has none.
        removes: the files.
        num_removed: stale rows in them.
    """

    adds: list[NewFile] = field(default_factory=list)
    removes: list[TableFile] = field(default_factory=list)
    num_removed: int = 0


@dataclass(frozen=True, slots=True)
class _Copy:
    file: TableFile
    new: NewFile | None
    num_removed: int


def copy_live_rows(
    destination: FeatureTable,
    head: int | None,
    key: str,
    parts: Sequence[NewFile],
    selection: RowSelection,
    layout: PartLayout,
    storage: Storage,
    spread: Spread,
) -> Replacement:
    """Copy the files of a head that hold keys of the run's parts, or keys that left the source.

    If the head is the one that the rows were selected for, and neither a changed row nor a removed one was found, no
    file can hold such a key, and none is opened.

    Args:
        destination: table of the features.
        head: its current version; None: it has no files.
        key: name of the key column.
        parts: all parts of the run.
        selection: the run's rows, and where the keys are that left the source.
        layout: of the destination's files.
        storage: of the run.
        spread: runs the tasks.

    Raises:
        VersionExpiredError: the head or a file of it is gone.
        RunError: the table or the store failed, or a copy exists with another number of rows.
    """
    if head is None or not (parts or selection.counts["removed"]) or _is_disjoint(selection, head):
        return Replacement()
    files = destination.files(head, key)
    if not files:
        return Replacement()
    stale = collect_part_keys(destination.folder, parts, key, storage, spread)
    if selection.counts["removed"]:
        stale += list_gone_keys(storage, selection.prefix, spread)
    near = KeyRanges(each.key_range for each in stale)
    copy = _Copies(destination, head, key, layout, storage, tuple(stale))
    copies = spread(copy, [file for file in files if near.overlap(file.key_range)])
    done = sorted((each for each in copies if each is not None), key=lambda each: each.file.path)
    adds = [each.new for each in done if each.new is not None]
    return Replacement(adds, [each.file for each in done], sum(each.num_removed for each in done))


def _is_disjoint(selection: RowSelection, head: int) -> bool:
    """Whether the rows were compared with this head, and all of them are new."""
    compared = selection.prefix.rpartition("/")[2].removesuffix("-all")
    return compared == str(head) and not (selection.counts["changed"] or selection.counts["removed"])


@dataclass(frozen=True, slots=True)
class _Copies:
    """Copies one file; called with it."""

    destination: FeatureTable
    head: int
    key: str
    layout: PartLayout
    storage: Storage
    stale: tuple[KeyFile, ...]

    def __call__(self, file: TableFile) -> _Copy | None:
        tables = self.destination.read(self.head, file, [self.key])
        keys = [plain_keys(table[self.key], self.key) for table in tables]
        is_stale = self._find_stale(pa.concat_arrays(keys)) if any(map(len, keys)) else np.zeros(0, bool)
        if not is_stale.any():
            return None
        new = None if is_stale.all() else self._write(file, ~is_stale)
        return _Copy(file, new, int(is_stale.sum()))

    def _find_stale(self, keys: pa.Array) -> NDArray[np.bool_]:
        """(R,) which rows of a file have stale keys."""
        is_stale = np.zeros(len(keys), bool)
        for batch in self._stale_keys(key_range(pa.chunked_array([keys]))):
            found = pc.is_in(keys, value_set=batch.cast(keys.type))  # pyright: ignore[reportAttributeAccessIssue]
            is_stale |= found.to_numpy(zero_copy_only=False)
        return is_stale

    def _stale_keys(self, within: KeyRange) -> Iterator[pa.Array]:
        """The stale keys near a range, in large batches."""
        wanted, batch, num_keys = KeyRanges([within]), list[pa.Array](), 0
        for each in self.stale:
            if not wanted.overlap(each.key_range):
                continue
            for keys in read_keys_in(self.storage, each.name, KEY, each.num_bytes, within):
                batch.append(keys)
                num_keys += len(keys)
                if num_keys >= _BATCH_KEYS:
                    yield pa.concat_arrays(batch)
                    batch, num_keys = [], 0
        if batch:
            yield pa.concat_arrays(batch)

    def _write(self, file: TableFile, is_live: NDArray[np.bool_]) -> NewFile:
        rows = pa.concat_tables(self.destination.read(self.head, file, self.layout.columns))
        rows = rows.filter(pa.array(is_live))
        name = f"kept/{hashlib.sha256(f'{file.path}|{file.identity}'.encode()).hexdigest()[:32]}.parquet"
        num_bytes = _create(self.storage, name, encode_table_file(rows, self.layout), len(rows))
        path = run_path(self.destination.folder, self.storage, name)
        return NewFile(path, len(rows), num_bytes, file.partition, key_range(rows[self.key]))


def _create(storage: Storage, name: str, content: bytes, num_rows: int) -> int:
    """Write a copy unless it exists; returns its size. Another version of pyarrow may have written other bytes."""
    if not storage.create(name, content):
        content = storage.read(name) or b""
        if not content or pq.read_metadata(pa.BufferReader(content)).num_rows != num_rows:
            msg = f"{storage.uri}/{name} is not a copy of these rows: delete it and run the same command again"
            raise RunError(msg)
    return len(content)
