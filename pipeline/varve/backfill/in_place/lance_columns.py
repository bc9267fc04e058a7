"""Features as columns of the Lance dataset that has the texts.

Publishes the parts of a run as one column file per fragment and one commit: Lance copies nothing else. Another feature
set is another group of columns and touches no file of the first. Invariants: a commit is made for the version that was
read, else it is made again for the later one, so no change of another writer is lost; files are compared with the parts
before they become visible; the state is found in the metadata of the hash column, which outlives old versions.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from varve.backfill.in_place.lance_columns_plan import ColumnPlan
from varve.backfill.in_place.lance_columns_task import verify_fragment, write_fragment
from varve.backfill.in_place.rows import OwnColumns, part_schema
from varve.engine.parallel import Spread
from varve.errors import JobError, RunError
from varve.lake.lance.column_file import ColumnFile
from varve.lake.lance.commit import Commit
from varve.lake.lance.dataset import open_latest, open_version
from varve.lake.lance.fragments import FEATURE_SET_KEY, describe_fragments, files_digest
from varve.lake.lance.lance_table import UUID_KEY, LanceTable
from varve.lake.lance.tag import create_tag, delete_tag, tagged_version
from varve.lake.table import HeadMovedError, State
from varve.output.part_table import PartTable
from varve.source.row_selection import RowSelection
from varve.storage.object_store import Storage

if TYPE_CHECKING:
    from lance import LanceDataset

STATE_KEY = "varve.state"
_MAX_COMMITS = 50  # other writers may commit all the time
_OLD_FORMATS = ("0.1", "legacy")  # their files hold all columns of a fragment
_SHORT = 16  # digits of a hash in names


@dataclass(frozen=True)
class LanceColumns:
    """The columns of one feature set.

    Attributes:
        table: that has the texts.
        feature_set: see `lake.table.State`.
        features: names of the stored feature columns, as the parts have them.
        text_columns: one or two.
    """

    table: LanceTable
    feature_set: str
    features: tuple[str, ...]
    text_columns: tuple[str, ...]

    @property
    def own(self) -> OwnColumns:
        """All columns of the feature set."""
        return OwnColumns(self.features)

    @property
    def tag(self) -> str:
        """Tag of the version that a run of the feature set reads."""
        return f"varve-{self.feature_set[:_SHORT]}"

    def state(self) -> State | None:
        """With which version of the table the columns are in step; None if there are no such columns.

        `source_version` is the latest version if it has the rows that the last run covered, whatever else was
        committed since then.

        Raises:
            JobError: there is no dataset, or its columns of these names are not of this feature set.
            RunError: it cannot be read.
        """
        dataset = open_latest(self.table.uri)
        stored = self._stored_state(dataset)
        if stored is None:
            return None
        is_covered = stored.pop("files") == files_digest(describe_fragments(dataset))
        state = State(**stored)
        return replace(state, source_version=dataset.version) if is_covered else state

    def prepare(self, stored: pa.Schema) -> None:  # noqa: ARG002 (of the interface)
        """Check the dataset; the commit of the values adds the columns.

        Raises:
            JobError: there is no dataset, or columns cannot be added to its fragments.
        """
        if (file_format := open_latest(self.table.uri).data_storage_version) in _OLD_FORMATS:
            msg = f"{self.table.uri} has the file format {file_format}: expected 2.0 or later. Write the dataset again"
            raise JobError(msg)

    def protect(self, version: int) -> int:
        """Protect a version from cleanup until `publish` has returned.

        Returns:
            The version, or the one that an interrupted run of the feature set protects: the run continues with that.

        Raises:
            VersionExpiredError: the version is gone.
            RunError: the dataset cannot be written.
        """
        uri = self.table.uri
        stored, tagged = self._stored_state(open_latest(uri)), tagged_version(uri, self.tag)
        if stored is not None and tagged is not None and tagged <= stored["source_version"]:
            delete_tag(uri, self.tag, tagged)  # of a run that died after its commit
        return create_tag(uri, self.tag, version)

    def publish(
        self, storage: Storage, parts: PartTable, selection: RowSelection, version: int, run: str, spread: Spread
    ) -> int:
        """Commit the parts of a run as values of the columns. Repeating a call changes nothing.

        Args:
            storage: of the run.
            parts: of the run, with columns `text_hash`, `error` and the features.
            selection: of the run.
            version: that the run has read.
            run: SHA-256 of the run.
            spread: writes and verifies files in parallel.

        Returns:
            The version that has the values and the state.

        Raises:
            JobError: columns of these names are not of this feature set.
            VersionExpiredError: the version that the run has read is gone.
            RunError: a store failed, parts or written files are damaged, or other writers commit all the time. The
                same call continues.
        """
        publication = _Publication(self, storage, parts, selection, version, run, spread)
        for _ in range(_MAX_COMMITS):
            try:
                committed = publication.commit()
            except HeadMovedError:
                continue
            delete_tag(self.table.uri, self.tag, version)
            return committed
        msg = f"{self.table.uri}: other writers committed {_MAX_COMMITS} times first. Run the same command again"
        raise RunError(msg)

    def _stored_state(self, dataset: "LanceDataset") -> dict[str, Any] | None:
        existing = {each.name: each.metadata or {} for each in dataset.schema if each.name in self.own.names}
        if not existing:
            return None
        for name in self.own.names:
            if existing.get(name, {}).get(FEATURE_SET_KEY.encode(), b"").decode() != self.feature_set:
                what = "is not of this feature set" if name in existing else "is missing, though others exist"
                msg = f"{self.table.uri}: column {name!r} {what}: choose other names of features, or drop its columns"
                raise JobError(msg)
        stored = existing[self.own.hash].get(STATE_KEY.encode())
        return json.loads(stored) if stored else None


@dataclass(frozen=True)
class _Publication:
    """One call of `publish`."""

    columns: LanceColumns
    storage: Storage
    parts: PartTable
    selection: RowSelection
    version: int
    run: str
    spread: Spread
    verified: set[str] = field(default_factory=set)

    def commit(self) -> int:
        """Write what the latest version needs, and commit it.

        Raises:
            HeadMovedError: another commit came first.
        """
        own, uri = self.columns.own, self.columns.table.uri
        head = open_latest(uri)
        stored = self.columns._stored_state(head)  # noqa: SLF001 (of this file)
        if stored is not None and stored["run"] == self.run:
            return head.version
        parts = part_schema(self.storage, self.parts)
        schema = own.schema(parts) if parts else None
        files = self._write(head, schema) if schema else []
        commit = Commit(uri, head, self._properties)
        if own.hash not in head.schema.names:
            return commit.add_columns(self._marked(schema, head), files) if schema else head.version
        if files:
            commit.update_columns(files)
        return self._commit_state(own.hash)

    def _commit_state(self, column: str) -> int:
        uri = self.columns.table.uri
        head = open_latest(uri)
        if column not in head.schema.names:
            msg = f"{uri}: column {column!r} was dropped"
            raise HeadMovedError(msg)
        return Commit(uri, head, self._properties).set_field_metadata(column, {STATE_KEY: self._state(head)})

    def _write(self, head: "LanceDataset", schema: pa.Schema) -> Sequence[ColumnFile]:
        """The verified files for a commit at this version."""
        columns = self.columns
        pinned = open_version(columns.table.uri, self.version)
        prefix = f"varve-{self.run[:_SHORT]}-"
        plan = ColumnPlan(
            columns.table.uri, pinned, columns.own, schema, columns.text_columns, self.selection, self.parts, prefix
        )
        tasks = {task.fragment: task for task in plan.tasks(head)}
        written = [file for file in self.spread(write_fragment, list(tasks.values())) if file]
        unverified = [(tasks[file.fragment], file) for file in written if file.name not in self.verified]
        self.verified.update(self.spread(verify_fragment, unverified))
        return written

    @property
    def _properties(self) -> Mapping[str, str]:
        """Of the transaction, for the history of the table."""
        values = {"feature_set": self.columns.feature_set, "run": self.run, "source_version": str(self.version)}
        counts = {name: str(rows) for name, rows in self.selection.counts.items()}
        return {f"varve.{name}": value for name, value in {**values, **counts}.items()}

    def _state(self, head: "LanceDataset") -> str:
        """The state after the commit, as JSON; `files`: digest of the rows that the run has read."""
        columns, uuid = self.columns, head.config().get(UUID_KEY, "")
        state = State(columns.feature_set, uuid, self.version, self.run, self.storage.uri)
        return json.dumps({**asdict(state), "files": files_digest(columns.table.files(self.version))})

    def _marked(self, schema: pa.Schema, head: "LanceDataset") -> pa.Schema:
        """The new columns with their mark, and the state at the hash column."""
        own = self.columns.own
        mark = {FEATURE_SET_KEY: self.columns.feature_set}
        state = {own.hash: {STATE_KEY: self._state(head)}}
        return pa.schema([each.with_metadata({**mark, **state.get(each.name, {})}) for each in schema])


def lance_states(table: LanceTable) -> list[State]:
    """The state of each feature set of a dataset.

    Raises:
        JobError: there is no dataset.
        RunError: it cannot be read.
    """
    dataset = open_latest(table.uri)
    found = [(each.metadata or {}).get(STATE_KEY.encode()) for each in dataset.schema]
    stored = [json.loads(each) for each in found if each]
    digest = files_digest(describe_fragments(dataset)) if stored else ""
    covered = [(each.pop("files") == digest, State(**each)) for each in stored]
    return [replace(state, source_version=dataset.version) if same else state for same, state in covered]
