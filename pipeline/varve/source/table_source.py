"""A table of a lake as a source: one shard for each of its data files, with deletes applied.

Knows nothing of the output. Invariants: a source is pinned to (uuid, version) of its table, and to the selected rows if
there is a selection; rows have the order of the file; with a key, each row has the hash of its text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from varve.config.source import Source
from varve.config.table_address import parse_table_address
from varve.errors import JobError
from varve.lake.open_table import open_table
from varve.lake.table import Pin, Table, TableFile
from varve.lake.text_hash import HASH_TYPE, TEXT_HASH, hash_texts
from varve.source.dataset import Dataset, Shards
from varve.source.row_selection import RowSelection


@dataclass(frozen=True, slots=True)
class TableReader:
    """Reads the files of one version of a table.

    Attributes:
        table: handle of the table.
        version: that is read.
        files: of the shards.
        columns: that are read.
        hashed: text columns whose hash becomes a column; empty for none.
        selection: of rows; None reads all.
    """

    table: Table
    version: int | None
    files: tuple[TableFile, ...]
    columns: tuple[str, ...]
    hashed: tuple[str, ...]
    selection: RowSelection | None

    def read(self, shard: int, first: int) -> Iterator[pa.Table]:
        """The selected rows of a shard from row `first` on, in tables of any size."""
        positions = self.selection.positions(shard) if self.selection else None
        start = row = 0  # first live row of the table, first selected row
        for table in self.table.read(self.version, self.files[shard], self.columns):
            stop = start + len(table)
            if positions is not None:
                low, high = np.searchsorted(positions, (start, stop))
                table = table.take(pa.array(positions[low:high] - start))  # noqa: PLW2901
            start = stop
            table, row = table.slice(max(0, first - row)), row + len(table)  # noqa: PLW2901
            if len(table):
                yield self._with_hash(table)
            if positions is not None and row == len(positions):
                return

    def _with_hash(self, table: pa.Table) -> pa.Table:
        if not self.hashed:
            return table
        hashes = hash_texts([table[name] for name in self.hashed])
        return table.append_column(pa.field(TEXT_HASH, HASH_TYPE), hashes)


def open_table_source(source: Source, pinned: str | None = None, selection: RowSelection | None = None) -> Dataset:
    """Pin and open a table.

    Args:
        source: section of the job.
        pinned: what `Dataset.commit` was in an earlier run.
        selection: the rows that are read; None: all.

    Raises:
        JobError: the table, its version or its columns do not exist, or the version is another one than pinned.
        VersionExpiredError: the version is gone.
    """
    table = open_table(parse_table_address(source.table or ""))
    pin = table.pin(source.at if pinned is None else parse_pin(pinned)[1])
    if pinned is not None and pin.uuid != parse_pin(pinned)[0]:
        msg = f"source.table: {source.table} was replaced by another table since the run was planned"
        raise JobError(msg)
    _check_columns(source, pin.schema)
    files = _selected(table.files(pin.version), selection) if selection else tuple(table.files(pin.version))
    rows = tuple(file.num_rows for file in (selection.files if selection else files))
    hashed = source.text_columns if source.has_hash else ()
    schema = pa.schema([pin.schema.field(name) for name in source.columns])
    return Dataset(
        reader=TableReader(table, pin.version, files, tuple(source.columns), hashed, selection),
        num_shards=len(files),
        files=tuple(file.path for file in files),
        commit=format_pin(pin, selection),
        schema=schema.append(pa.field(TEXT_HASH, HASH_TYPE)) if hashed else schema,
        shards=Shards(tuple(range(len(files))), None if None in rows else rows),  # pyright: ignore[reportArgumentType]
        versions=None,
        storage_options={},
        notes=(),
    )


def format_pin(pin: Pin, selection: RowSelection | None) -> str:
    """UUID@VERSION, with the hash of the selected rows if there is a selection."""
    return f"{pin.uuid}@{pin.version}{f'+{selection.sha256}' if selection else ''}"


def parse_pin(pinned: str) -> tuple[str, int | None]:
    """(uuid, version) of a formatted pin."""
    uuid, _, version = pinned.partition("+")[0].rpartition("@")
    return uuid, None if version == "None" else int(version)


def _selected(files: Sequence[TableFile], selection: RowSelection) -> tuple[TableFile, ...]:
    by_path = {file.path: file for file in files}
    return tuple(by_path[each.path] for each in selection.files)


def _check_columns(source: Source, schema: pa.Schema) -> None:
    for key, names in (
        ("text", source.text_columns),
        ("key", [source.key] if source.key else []),
        ("keep", source.keep),
    ):
        for name in names:
            if name not in schema.names:
                msg = f"source.{key}: {source.table} has no column {name!r}. Its columns: {', '.join(schema.names)}"
                raise JobError(msg)
    for name in source.text_columns:
        if not pa.types.is_string(schema.field(name).type):
            msg = (
                f"source.text: column {name!r} of {source.table} is of type {schema.field(name).type}: expected string"
            )
            raise JobError(msg)
