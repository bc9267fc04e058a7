"""Writes files of an Iceberg or Delta table again, with the features of their rows as further columns.

Knows nothing of commits. Invariants: a new file has the live rows of the old one in their order, with all columns of
the table; only the own columns of selected rows differ; its name is a function of the old file and the run, and it is
created once; it is compared with the old file and the parts, bit by bit, before it is used.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from varve.backfill.in_place.rows import Chunk, OwnColumns, overlay_rows, placed_rows, same_bits
from varve.backfill.in_place.texts import find_rows, stale_rows
from varve.backfill.run_paths import run_path
from varve.errors import JobError, RunError, one_line
from varve.lake.table import FeatureTable, NewFile, Pin, TableFile
from varve.output.part_layout import PartLayout, encode_table_file
from varve.output.part_table import PartTable
from varve.source.row_selection import ShardSelection
from varve.storage.object_store import Storage


@dataclass(frozen=True, slots=True)
class RewrittenFile:
    """What a file becomes. Picklable.

    Attributes:
        table: that has the file.
        version: that is read.
        file: the old file.
        schema: all columns of the table, of the types of `Pin.schema`.
        own: columns.
        text_columns: one or two.
        layout: of files of the table.
        storage: of the run.
        selected: rows of this file; None: rows are found by their text.
        parts: of the shard; or those in which texts are looked up.
    """

    table: FeatureTable
    version: int
    file: TableFile
    schema: pa.Schema
    own: OwnColumns
    text_columns: tuple[str, ...]
    layout: PartLayout
    storage: Storage
    selected: ShardSelection | None
    parts: PartTable

    def write(self) -> tuple[TableFile, NewFile] | None:
        """(the old file, the new one); None if no row changes.

        Raises:
            VersionExpiredError: the old file is gone.
            RunError: parts are missing or damaged, a store failed, or the new file differs from what it must have.
        """
        stored = pa.concat_tables([self._schema.empty_table(), *self._read()]).combine_chunks()
        places, new = self._new_rows(stored)
        if not len(places):
            return None
        rows = self._with_features(stored, new)
        storage, name = self.storage, self._name
        storage.create(name, encode_table_file(rows, self.layout))
        num_bytes = self._verify(name, rows)
        path = run_path(self.table.folder, storage, name)
        return self.file, NewFile(path, len(rows), num_bytes, self.file.partition)

    @property
    def _name(self) -> str:
        return f"rewritten/{hashlib.sha256(f'{self.file.path}|{self.file.identity}'.encode()).hexdigest()[:32]}.parquet"

    @property
    def _schema(self) -> pa.Schema:
        return pa.schema([self.schema.field(name) for name in self.layout.columns])

    @property
    def _own_schema(self) -> pa.Schema:
        """The own columns; hashes have a fixed length."""
        fields = [self.schema.field(name) for name in self.own.names]
        return pa.schema([each.with_type(pa.binary(16)) if each.name == self.own.hash else each for each in fields])

    def _read(self) -> Iterable[pa.Table]:
        for table in self.table.read(self.version, self.file, self.layout.columns):
            yield table.select(self.layout.columns).cast(self._schema)

    def _new_rows(self, stored: pa.Table) -> tuple[NDArray[np.int64], Iterable[Chunk]]:
        """(positions of the rows with new values, these values)."""
        storage = self.storage
        if self.selected is not None:
            positions = self.selected.positions()
            places = np.arange(len(stored)) if positions is None else positions
            return places, placed_rows(storage, self.parts, self.own, self._own_schema, places)
        is_stale, hashes = stale_rows(stored, self.text_columns, self.own.hash)
        hashes = hashes.filter(pa.array(is_stale))
        is_found, rows = find_rows(storage, self.parts, self.own, self._own_schema, hashes)
        places = np.flatnonzero(is_stale)[is_found]
        return places, [(places, rows)]

    def _with_features(self, stored: pa.Table, new: Iterable[Chunk]) -> pa.Table:
        old = [(np.arange(len(stored)), stored.select(self.own.names).cast(self._own_schema))]
        own = pa.concat_tables(overlay_rows(len(stored), self._own_schema, old, new)).combine_chunks()
        columns = [own[name] if name in self.own.names else stored[name] for name in self.layout.columns]
        return pa.table(columns, names=list(self.layout.columns))

    def _verify(self, name: str, rows: pa.Table) -> int:
        """The size of the file, which must have these rows."""
        storage = self.storage
        content = storage.read(name) or b""
        try:
            found = pq.read_table(pa.BufferReader(content)).cast(rows.schema)
            is_same, problem = same_bits(rows, found), "its rows are not those of the table and the run"
        except (pa.ArrowException, ValueError) as e:
            is_same, problem = False, one_line(e)
        if not is_same:
            storage.delete([name])
            msg = (
                f"{storage.uri}/{name}: {problem}. The table was not changed. Run the same command again: it writes "
                "this file again"
            )
            raise RunError(msg)
        return len(content)


def write_file(task: RewrittenFile) -> tuple[TableFile, NewFile] | None:
    """Write the file of a task; see `RewrittenFile.write`."""
    return task.write()


def check_rewritable(table: FeatureTable, head: Pin, file: TableFile) -> None:
    """Refuse what cannot be written again without a loss.

    Raises:
        JobError: the file is of an earlier partition, or a column is nested.
    """
    if head.partition and file.partition == "[]":
        msg = f"{table.address}: {file.path} is of an earlier partition of the table: rewrite its files first"
        raise JobError(msg)
    nested = [each.name for each in head.schema if pa.types.is_struct(each.type) or pa.types.is_map(each.type)]
    if nested and table.address.format == "iceberg":
        msg = (
            f"{table.address}: column {nested[0]!r} is nested, and its fields would lose their ids in rewritten files: "
            "use a table of its own for the features (without columns: rewrite)"
        )
        raise JobError(msg)
