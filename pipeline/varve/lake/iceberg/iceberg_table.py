"""Iceberg tables, as sources and as feature tables.

A handle holds an address only: each process opens the catalog by its own configuration. Knows nothing of models or Ray.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
from pyiceberg.schema import Schema
from pyiceberg.table import Table as OpenTable
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.types import NestedField

from varve.config.table_address import TableAddress
from varve.errors import RunError
from varve.lake.iceberg.catalog import describe, find_table, forget_table, load_table, recent_table
from varve.lake.iceberg.column_types import arrow_schema, field_ids
from varve.lake.iceberg.commit import publish, read_state, stage, unstage
from varve.lake.iceberg.definition import prepare_table
from varve.lake.iceberg.files import list_files
from varve.lake.iceberg.partition import partition_fields
from varve.lake.iceberg.rows import read_rows
from varve.lake.iceberg.state import read_states
from varve.lake.iceberg.versions import find_snapshot
from varve.lake.table import Change, Definition, Pin, State, TableFile, VersionExpiredError


@dataclass(frozen=True, slots=True)
class IcebergTable:
    """A table of a catalog that pyiceberg is configured for; implements `Table` and `FeatureTable`.

    Versions are snapshot ids. Errors are those of the protocols.
    """

    address: TableAddress

    def pin(self, at: str | int | None) -> Pin:
        """The current snapshot, or that of a snapshot id, branch, tag or ISO timestamp (UTC if it has no offset)."""
        table = load_table(self.address)
        snapshot = find_snapshot(self.address, table, at)
        schema = _schema_of(table, snapshot)
        return Pin(
            uuid=str(table.metadata.table_uuid),
            version=snapshot.snapshot_id if snapshot else None,
            schema=arrow_schema(schema),
            partition=partition_fields(table.spec(), schema, table.schema()),
        )

    def files(self, version: int | None, key: str | None = None) -> list[TableFile]:
        """The data files of a snapshot, sorted by path.

        The partition of a file of an older specification than the table's current one is "[]".
        """
        if version is None:
            return []
        table, snapshot = self._at(version)
        [column] = _fields(table, snapshot, [key]) if key else [None]
        return list_files(self.address, table, version, column)

    def read(self, version: int | None, file: TableFile, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The live rows of a file, in order, in tables of at most 4,096 rows."""
        if version is None:
            return
        table, snapshot = self._at(version)
        try:
            yield from read_rows(table, Schema(*_fields(table, snapshot, columns)), file)
        except FileNotFoundError as e:
            msg = f"{self.address}: {file.path} of snapshot {version} is gone: the snapshot has expired"
            raise VersionExpiredError(msg) from e
        except (OSError, pa.ArrowException, ValueError, LookupError, TypeError, EOFError, SystemError) as e:
            # Decoders of delete files raise the last ones if a file is damaged.
            msg = f"{self.address}: {file.path} cannot be read: {describe(e, self.address.catalog)}"
            raise RunError(msg) from e

    @property
    def folder(self) -> str:
        """The folder of runs; `remove_orphan_files` passes names over that start with an underscore."""
        return f"{recent_table(self.address, None).location().rstrip('/')}/_varve"

    def exists(self) -> bool:
        """Whether the catalog has the table."""
        return find_table(self.address) is not None

    def prepare(self, definition: Definition) -> None:
        """Create the table with format version 2, or check it and add missing columns."""
        prepare_table(self.address, definition)
        forget_table(self.address)

    def field_ids(self) -> dict[str, int]:
        """Path of each column and list element → its field id."""
        return field_ids(load_table(self.address).schema())

    def state(self, feature_set: str) -> State | None:
        """What main is in step with."""
        table = find_table(self.address)
        return read_state(table, feature_set) if table else None

    def states(self) -> list[State]:
        """The state of each feature set."""
        table = find_table(self.address)
        return read_states(table) if table else []

    def stage(self, change: Change) -> int | None:
        """Put the change on a branch of its own; returns the snapshot's id, or the head for a change without files."""
        return stage(self.address, change)

    def commit(self, change: Change) -> int:
        """Move main to the change's snapshot, staging it first unless it is."""
        return publish(self.address, change)

    def unstage(self, change: Change) -> None:
        """Remove the change's branch and snapshot."""
        unstage(self.address, change)

    def _at(self, version: int) -> tuple[OpenTable, Snapshot]:
        table = recent_table(self.address, version)
        snapshot = table.snapshot_by_id(version)
        if snapshot is None:
            msg = f"{self.address}: snapshot {version} is gone: it has expired, or the table was replaced"
            raise VersionExpiredError(msg)
        return table, snapshot


def _schema_of(table: OpenTable, snapshot: Snapshot | None) -> Schema:
    """The columns of a snapshot; those of the table for the current one: a column may be added after it."""
    if snapshot is None or snapshot.schema_id is None or snapshot.snapshot_id == table.metadata.current_snapshot_id:
        return table.schema()
    return table.schemas().get(snapshot.schema_id, table.schema())


def _fields(table: OpenTable, snapshot: Snapshot, names: Sequence[str]) -> list[NestedField]:
    """Columns by their names in a snapshot, or else in the table: it may have been the current one when it was pinned.

    Raises:
        ValueError: there is no such column.
    """
    schema = _schema_of(table, snapshot)
    return [(schema if name in schema.column_names else table.schema()).find_field(name) for name in names]
