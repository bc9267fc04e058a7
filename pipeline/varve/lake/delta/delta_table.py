"""Delta tables as a source of texts and as tables of features.

Knows nothing of models. Invariants: a commit is one version of the log, made by one conditional put right after the
version that the change is made for; nothing is retried on another head; paths in the log are relative to the table.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties
from deltalake import DeltaTable as DeltaVersion
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction, RemoveAction

from varve.config.base import local_path
from varve.config.table_address import TableAddress
from varve.errors import JobError, RunError
from varve.lake.delta.column_types import decode_partition, plain_schema
from varve.lake.delta.columns import column_owners
from varve.lake.delta.definition import feature_set_of, key_of, prepare_table
from varve.lake.delta.files import is_masked, list_files, read_file
from varve.lake.delta.log import clean, find_version, open_version, retried, version_at
from varve.lake.delta.state import StateRecord, find_state, write_state
from varve.lake.table import Change, Definition, HeadMovedError, NewFile, PartitionField, Pin, State, TableFile


@dataclass(frozen=True, slots=True)
class DeltaTable:
    """A Delta table, by its address; implements `Table` and `FeatureTable`."""

    address: TableAddress

    @property
    def folder(self) -> str:
        """The folder of runs' files. Not one that starts with _: VACUUM would never remove what later runs replace."""
        return f"{self.address.name}/varve"

    def pin(self, at: str | int | None) -> Pin:
        """See `Table.pin`; Delta has versions and timestamps, and neither tags nor branches."""
        version = version_at(self.address.name, at)
        metadata = version.metadata()
        return Pin(
            uuid=str(metadata.id),
            version=version.version(),
            schema=plain_schema(pa.schema(version.schema().to_arrow())),
            partition=tuple(PartitionField(column, column) for column in metadata.partition_columns),
        )

    def files(self, version: int | None, key: str | None = None) -> list[TableFile]:
        """See `Table.files`."""
        if version is None:
            return []
        return list_files(self.address.name, open_version(self.address.name, version), key)

    def read(self, version: int | None, file: TableFile, columns: Sequence[str]) -> Iterator[pa.Table]:  # noqa: ARG002
        """See `Table.read`."""
        return read_file(self.address.name, file, columns)

    def exists(self) -> bool:
        """Whether there is a table."""
        return find_version(self.address.name) is not None

    def prepare(self, definition: Definition) -> None:
        """See `FeatureTable.prepare`."""
        prepare_table(self.address.name, definition)

    def field_ids(self) -> dict[str, int]:
        """Empty: Delta's columns have no ids."""
        return {}

    def state(self, feature_set: str) -> State | None:
        """See `FeatureTable.state`."""
        version = find_version(self.address.name)
        record = None if version is None else find_state(self.address.name, version, feature_set)
        return None if record is None else record.state

    def states(self) -> list[State]:
        """The state of the feature set that the table was made for, and of each one that has columns in it."""
        version = find_version(self.address.name)
        if version is None:
            return []
        owners = column_owners(self.address.name).values()
        feature_sets = dict.fromkeys(filter(None, (feature_set_of(version), *owners)))
        return [state for state in map(self.state, feature_sets) if state]

    def stage(self, change: Change) -> int | None:  # noqa: ARG002
        """None: Delta has no versions that readers do not see."""
        return None

    def unstage(self, change: Change) -> None:
        """Nothing was staged."""

    def commit(self, change: Change) -> int:
        """See `FeatureTable.commit`."""
        try:
            return retried(lambda: self._commit(change))
        except (DeltaError, OSError, ValueError) as e:
            return self._outcome(change, e)

    def _commit(self, change: Change) -> int:
        """Make one attempt; the first thing is to look whether an earlier one, or another driver, has done it."""
        head = open_version(self.address.name)
        if (done := self._committed_version(head, change)) is not None:
            return done
        self._check_head(head, change)
        record = StateRecord(change.state, head.version() + 1)
        actions: list[Any] = [*self._remove_actions(head, change.removes), *self._add_actions(head, change.adds)]
        properties = CommitProperties(
            custom_metadata=_commit_info(change),
            max_commit_retries=0,  # a retry would rebase the change on a head that it was not made for
            app_transactions=write_state(self.address.name, record),
        )
        partition_by = head.metadata().partition_columns
        head.create_write_transaction(actions, "append", head.schema(), partition_by, commit_properties=properties)
        return record.version

    def _outcome(self, change: Change, error: Exception) -> int:
        """The version of a change whose commit failed, or whose answer was lost."""
        latest = open_version(self.address.name)
        if (done := self._committed_version(latest, change)) is not None:
            return done
        self._check_head(latest, change)
        msg = f"{self.address}: the commit failed and nothing was changed: {clean(error)}. Run the same command again"
        raise RunError(msg) from error

    def _committed_version(self, version: DeltaVersion, change: Change) -> int | None:
        record = find_state(self.address.name, version, change.state.feature_set)
        return record.version if record is not None and record.state == change.state else None

    def _check_head(self, head: DeltaVersion, change: Change) -> None:
        if head.version() != change.head:
            msg = f"{self.address}: its latest version is {head.version()}, the change was made for {change.head}"
            raise HeadMovedError(msg)

    def _add_actions(self, head: DeltaVersion, files: Sequence[NewFile]) -> list[AddAction]:
        values, key, now = _partition_values(head, files), key_of(head), _now()
        return [
            AddAction(
                path=self._relative(file.path),
                size=file.file_bytes,
                partition_values=values[file.partition],
                modification_time=now,
                data_change=True,
                stats=_statistics(file, key),
            )
            for file in files
        ]

    def _remove_actions(self, head: DeltaVersion, files: Sequence[TableFile]) -> list[RemoveAction]:
        values, now = _partition_values(head, files), _now()
        if masked := [file.path for file in files if is_masked(file)]:
            msg = (
                f"{self.address}: {masked[0]} has a deletion vector, so this run cannot replace the file. Remove the "
                "vectors first (Spark: REORG TABLE ... APPLY (PURGE)), then run the same command again"
            )
            raise JobError(msg)
        return [
            RemoveAction(
                path=self._relative(file.path),
                data_change=True,
                deletion_timestamp=now,
                size=file.file_bytes,
                partition_values=values[file.partition],
            )
            for file in files
        ]

    def _relative(self, path: str) -> str:
        """The path below the table: with an absolute one in its log, no reader could read the table."""
        path, root = local_path(path), f"{self.address.name}/"
        if not path.startswith(root):
            msg = f"{self.address}: {path} is not below the table: expected a file in {self.folder}"
            raise JobError(msg)
        return path.removeprefix(root)


def _partition_values(
    head: DeltaVersion, files: Sequence[NewFile] | Sequence[TableFile]
) -> dict[str, dict[str, str | None]]:
    """Partition of a file → partition column → value; many files have the same one."""
    columns = head.metadata().partition_columns
    return {partition: decode_partition(partition, columns) for partition in {file.partition for file in files}}


def _statistics(file: NewFile, key: str) -> str:
    """Statistics of the key alone: those of vectors are of no use and long."""
    if file.key_range is None or not key:
        return json.dumps({"numRecords": file.num_rows})
    least, greatest = file.key_range
    bounds = {"minValues": {key: least}, "maxValues": {key: greatest}, "nullCount": {key: 0}}
    return json.dumps({"numRecords": file.num_rows, **bounds})


def _commit_info(change: Change) -> dict[str, str]:
    """What the table's history shows of a run."""
    state = change.state
    shown = {"run": state.run, "source_uuid": state.source_uuid, "source_version": str(state.source_version)}
    details = {name.removeprefix("varve."): value for name, value in change.details.items()}
    return {f"varve.{name}": value for name, value in {**details, **shown}.items()}


def _now() -> int:
    """Milliseconds since 1970, for VACUUM's retention: correctness does not depend on them."""
    return int(time.time() * 1000)
