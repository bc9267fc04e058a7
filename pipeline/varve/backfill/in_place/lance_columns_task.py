"""Writes and verifies the column file of one fragment of a Lance dataset, on a worker.

Knows nothing of commits. Invariants: a file has, at each physical row, the encoded values where the row is selected and
the stored values elsewhere; the record of a file is created once, after the file, and names the one that is used; a
file that fails verification loses its record, so it is written again.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.backfill.in_place.rows import Chunk, OwnColumns, overlay_rows, placed_rows, same_bits
from varve.backfill.in_place.texts import find_rows, stale_rows
from varve.errors import RunError
from varve.lake.lance.column_file import ColumnFile, delete_column_file, read_column_file, write_column_file
from varve.lake.lance.dataset import lance_errors, open_version
from varve.lake.lance.offsets import encode_offsets
from varve.lake.text_hash import HASH_TYPE
from varve.output.part_table import PartTable
from varve.source.row_selection import ShardSelection
from varve.storage.object_store import Storage

if TYPE_CHECKING:
    from lance import LanceDataset

_BATCH_ROWS = 4096
_OFFSET_BITS = 0xFFFFFFFF  # the lower half of a row's address is its offset in the fragment


@dataclass(frozen=True, slots=True)
class FragmentTask:
    """What the column file of a fragment is made of. Picklable.

    Attributes:
        uri: of the dataset.
        version: that is read.
        fragment: id.
        record: name of the file's record, below the run's storage.
        prefix: of the file's name.
        own: columns.
        schema: of the own columns.
        text_columns: names in this version.
        storage: of the run.
        selected: rows of this fragment; None: rows are found by their text.
        parts: of the shard; or those in which texts are looked up.
    """

    uri: str
    version: int
    fragment: int
    record: str
    prefix: str
    own: OwnColumns
    schema: pa.Schema
    text_columns: tuple[str, ...]
    storage: Storage
    selected: ShardSelection | None
    parts: PartTable

    def write(self) -> ColumnFile | None:
        """Write the file unless there is a record of it; None if no row of the fragment changes.

        Raises:
            VersionExpiredError: the version is gone.
            RunError: parts are missing or damaged, or a store failed.
        """
        storage = self.storage
        if (content := storage.read(self.record)) is not None:
            return ColumnFile.from_json(content)
        places, new = self._new_rows()
        if not len(places):
            return None
        rows, file_format = self._overlay(places, new), self._dataset.data_storage_version
        name, num_rows, file_bytes = write_column_file(self.uri, self.prefix, file_format, self.schema, rows)
        written = ColumnFile(self.fragment, name, num_rows, file_bytes, encode_offsets(places).hex())
        if storage.create(self.record, written.to_json()):
            return written
        delete_column_file(self.uri, name)
        return ColumnFile.from_json(storage.read(self.record) or b"")

    def verify(self, written: ColumnFile) -> None:
        """Compare the file with the parts and with the stored rows, bit by bit.

        Raises:
            RunError: it is missing, cannot be read, or differs.
        """
        expected = self._overlay(*self._new_rows())
        if problem := self._compare(written, expected):
            self.storage.delete([self.record])
            msg = f"{problem}. The table was not changed. Run the same command again: it writes this file again"
            raise RunError(msg)

    def _compare(self, written: ColumnFile, expected: Iterable[pa.Table]) -> str | None:
        """What is wrong with the file."""
        name, start = f"{self.uri}/data/{written.name}", 0
        stored = _numbered(read_column_file(self.uri, written.name), written.num_rows)
        found = overlay_rows(written.num_rows, self.schema, stored, (), _BATCH_ROWS)
        for wanted in expected:
            try:
                table = next(found, wanted.slice(0, 0))
            except RunError as e:
                return str(e)
            if not same_bits(wanted, table):
                return f"{name}: rows from {start:,} on are not those of the parts"
            start += len(wanted)
        return None if start == written.num_rows else f"{name} has {written.num_rows:,} rows instead of {start:,}"

    @property
    def _dataset(self) -> "LanceDataset":
        return open_version(self.uri, self.version)

    @property
    def _fragment(self) -> Any:
        if (fragment := self._dataset.get_fragment(self.fragment)) is None:
            msg = f"{self.uri}: version {self.version} has no fragment {self.fragment}"
            raise RunError(msg)
        return fragment

    @property
    def _has_columns(self) -> bool:
        return self.own.hash in self._dataset.schema.names

    def _new_rows(self) -> tuple[NDArray[np.int64], Iterable[Chunk]]:
        """(physical offsets of the rows with new values, these values)."""
        if self.selected is None:
            return self._found_rows()
        offsets = self._concat(places for places, _ in self._scan([]))
        positions = self.selected.positions()
        places = offsets if positions is None else offsets[positions]
        return places, placed_rows(self.storage, self.parts, self.own, self.schema, places)

    def _found_rows(self) -> tuple[NDArray[np.int64], Iterable[Chunk]]:
        """Rows of the fragment that are stale and whose text the parts have."""
        columns = [*self.text_columns, *([self.own.hash] if self._has_columns else [])]
        stale = [self._stale(places, table) for places, table in self._scan(columns)]
        places = self._concat(offsets for offsets, _ in stale)
        hashes = pa.concat_arrays([pa.array([], HASH_TYPE), *(each for _, each in stale)])
        is_found, rows = find_rows(self.storage, self.parts, self.own, self.schema, hashes)
        places = places[is_found]
        return places, [(places, rows)] if len(places) else []

    def _stale(self, places: NDArray[np.int64], table: pa.Table) -> tuple[NDArray[np.int64], pa.Array]:
        is_stale, hashes = stale_rows(table, self.text_columns, self.own.hash)
        return places[is_stale], hashes.filter(pa.array(is_stale))

    def _overlay(self, places: NDArray[np.int64], new: Iterable[Chunk]) -> Iterator[pa.Table]:
        """All physical rows of the fragment."""
        fragment = self._fragment
        replaces_all = len(places) == fragment.count_rows()
        stored = self._scan(list(self.own.names)) if self._has_columns and not replaces_all else ()
        return overlay_rows(fragment.physical_rows, self.schema, self._typed(stored), new, _BATCH_ROWS)

    def _typed(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        for places, table in chunks:
            yield places, table.cast(self.schema)

    def _scan(self, columns: list[str]) -> Iterator[Chunk]:
        """The live rows of the fragment, in order."""
        with lance_errors(f"{self.uri}/fragment/{self.fragment}", "read"):
            for batch in self._fragment.to_batches(columns=columns, with_row_address=True, batch_size=_BATCH_ROWS):
                table = pa.Table.from_batches([batch])
                addresses = table["_rowaddr"].to_numpy()
                yield (addresses & np.uint64(_OFFSET_BITS)).astype(np.int64), table.select(columns)

    def _concat(self, places: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
        return np.concatenate([np.empty(0, np.int64), *places])


def write_fragment(task: FragmentTask) -> ColumnFile | None:
    """Write the file of a task; see `FragmentTask.write`. Its fragment names the task, which can be large."""
    return task.write()


def verify_fragment(item: tuple[FragmentTask, ColumnFile]) -> str:
    """Verify the file of a task; returns its name."""
    task, written = item
    task.verify(written)
    return written.name


def _numbered(tables: Iterable[pa.Table], num_rows: int) -> Iterator[Chunk]:
    """Tables with the numbers of their rows.

    Raises:
        RunError: there are not `num_rows` rows.
    """
    start = 0
    for table in tables:
        yield np.arange(start, start + len(table)), table
        start += len(table)
    if start != num_rows:
        msg = f"a column file has {start:,} rows instead of {num_rows:,}"
        raise RunError(msg)
