"""Features as columns of the Iceberg or Delta table that has the texts: its files are written again.

The price is the copy of all columns of each file with a selected row. Invariants: columns are added first, by a commit
of their own, and are null; one commit then replaces files, and none of another writer's changes is lost: it is made for
the head that was read, or else again for the later one; what the columns are in step with is found in the table's
state and in the run's folder.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import pyarrow as pa

from varve.backfill.in_place.rewritten_files import RewrittenFile, check_rewritable, write_file
from varve.backfill.in_place.rows import OwnColumns, part_schema
from varve.engine.parallel import Spread
from varve.errors import JobError, RunError
from varve.lake.own_columns import add_columns, column_owners
from varve.lake.table import Change, FeatureTable, HeadMovedError, NewFile, Pin, State, TableFile, VersionExpiredError
from varve.output.part_layout import PartLayout
from varve.output.part_table import PartTable
from varve.source.row_selection import RowSelection
from varve.storage.object_store import Storage

COMMITTED_NAME = "_varve/committed.json"
_MAX_COMMITS = 20


@dataclass(frozen=True)
class RewrittenColumns:
    """The columns of one feature set. The same interface as `LanceColumns`.

    Attributes:
        table: that has the texts.
        feature_set: see `lake.table.State`.
        features: names of the stored feature columns, as the parts have them.
        text_columns: one or two.
    """

    table: FeatureTable
    feature_set: str
    features: tuple[str, ...]
    text_columns: tuple[str, ...]

    @property
    def own(self) -> OwnColumns:
        """All columns of the feature set."""
        return OwnColumns(self.features)

    def state(self) -> State | None:
        """With which version of the table the columns are in step; None if no run was published.

        `source_version` is the latest version if it has the same rows as the one that the last run covered.

        Raises:
            JobError: there is no table, or its columns of these names are not of this feature set.
            RunError: it cannot be read.
        """
        owners = column_owners(self.table.address)
        self._check_owners(owners)
        state = self.table.state(self.feature_set)
        if state is None or self.own.hash not in owners:
            return None
        committed = Storage(state.folder, patient=False).read(COMMITTED_NAME)
        covered = json.loads(committed)["version"] if committed else state.source_version
        latest = self.table.pin(None).version
        return replace(state, source_version=latest if _same_rows(self.table, covered, latest) else covered)

    def prepare(self, stored: pa.Schema) -> None:
        """Add the columns unless the table has them. It comes before the pin: in Delta it makes a version.

        Args:
            stored: columns of the parts.

        Raises:
            JobError: the format has no such type, or columns of these names are not of this feature set.
            RunError: the catalog or store failed.
        """
        self._check_owners(column_owners(self.table.address))
        add_columns(self.table.address, _with_lists(self.own.schema(stored)), self.feature_set)

    def protect(self, version: int) -> int:
        """The version: Iceberg and Delta keep versions for days, and a run whose version expires names it."""
        return version

    def publish(
        self, storage: Storage, parts: PartTable, selection: RowSelection, version: int, run: str, spread: Spread
    ) -> int:
        """Commit the parts of a run as values of the columns. Repeating a call changes nothing.

        Args:
            storage: of the run, below the `folder` of the table.
            parts: of the run, with columns `text_hash`, `error` and the features.
            selection: of the run.
            version: that the run has read.
            run: SHA-256 of the run.
            spread: writes files in parallel.

        Returns:
            The version that has the values and the state.

        Raises:
            JobError: the table has columns or partitions that cannot be written again.
            VersionExpiredError: the version that the run has read is gone.
            RunError: a store failed, parts or written files are damaged, or other writers commit all the time. The
                same call continues.
        """
        if (stored := part_schema(storage, parts)) is not None:
            self.prepare(stored)
        publication = _Publication(self, storage, parts.in_order(), selection, version, run, spread)
        for _ in range(_MAX_COMMITS):
            try:
                return publication.commit()
            except HeadMovedError:
                continue
        msg = f"{self.table.address}: other writers committed {_MAX_COMMITS} times first. Run the same command again"
        raise RunError(msg)

    def _check_owners(self, owners: Mapping[str, str | None]) -> None:
        for name in self.own.names:
            if name in owners and owners[name] != self.feature_set:
                msg = (
                    f"{self.table.address}: column {name!r} is not of this feature set: choose other names of "
                    "features, or drop the column"
                )
                raise JobError(msg)


@dataclass(frozen=True, slots=True)
class _Publication:
    """One call of `publish`."""

    columns: RewrittenColumns
    storage: Storage
    parts: PartTable
    selection: RowSelection
    version: int
    run: str
    spread: Spread

    def commit(self) -> int:
        """Write the files for the latest version, and commit them.

        Raises:
            HeadMovedError: another commit came first.
        """
        table = self.columns.table
        state, head = table.state(self.columns.feature_set), table.pin(None)
        if state and state.run == self.run:
            return self._committed(head)
        tasks = list(self._tasks(head))
        written = [pair for pair in self.spread(write_file, tasks) if pair]
        change = self._change(head, dict(written))
        try:
            if written:
                table.stage(change)
            return self._record(table.commit(change), is_complete=_same_rows(table, self.version, head.version))
        except HeadMovedError:
            table.unstage(change)
            raise

    def _change(self, head: Pin, written: Mapping[TableFile, NewFile]) -> Change:
        columns = self.columns
        state = State(columns.feature_set, head.uuid, self.version, self.run, self.storage.uri)
        details = {f"varve.rows-{name}": str(rows) for name, rows in self.selection.counts.items()}
        return Change(head.version, state, tuple(written.values()), tuple(written), details)

    def _tasks(self, head: Pin) -> Iterator[RewrittenFile]:
        """The files of the head that get new values."""
        table, shards = self.columns.table, {file.path: shard for shard, file in enumerate(self.selection.files)}
        current = {file.path: file for file in table.files(head.version)}
        before = {file.path: file.identity for file in table.files(self.version)}
        same = {path for path, file in current.items() if before.get(path) == file.identity}
        moved = [shard for path, shard in shards.items() if path not in same]
        for path in sorted(same & shards.keys()):
            yield self._task(head, current[path], shards[path], [shards[path]])
        if moved:
            for path in sorted(current.keys() - same):
                yield self._task(head, current[path], None, moved)

    def _task(self, head: Pin, file: TableFile, shard: int | None, shards: list[int]) -> RewrittenFile:
        table = self.columns.table
        check_rewritable(table, head, file)
        layout = PartLayout(
            tuple(head.schema.names), "", table.field_ids(), fixed_binary=table.address.format != "delta"
        )
        assert head.version is not None
        return RewrittenFile(
            table=table,
            version=head.version,
            file=file,
            schema=head.schema,
            own=self.columns.own,
            text_columns=self.columns.text_columns,
            layout=layout,
            storage=self.selection.storage,
            selected=None if shard is None else self.selection.of_shard(shard),
            parts=self.parts.of_shards(shards),
        )

    def _record(self, version: int, *, is_complete: bool) -> int:
        """Note the version from which later runs compare files: that of the commit, if it covers all rows."""
        covered = version if is_complete else self.version
        self.storage.create(COMMITTED_NAME, json.dumps({"version": covered, "commit": version}).encode())
        return version

    def _committed(self, head: Pin) -> int:
        """The version of the commit; after a crash between commit and record, the latest one."""
        stored = self.storage.read(COMMITTED_NAME)
        assert head.version is not None
        return json.loads(stored)["commit"] if stored else head.version


def _same_rows(table: FeatureTable, one: int | None, other: int | None) -> bool:
    """Whether two versions have the same files with the same rows; not if one of them has expired."""
    if one == other:
        return True
    try:
        listed = [{(file.path, file.identity) for file in table.files(version)} for version in (one, other)]
    except VersionExpiredError:
        return False
    return listed[0] == listed[1]


def _with_lists(schema: pa.Schema) -> pa.Schema:
    """Vectors as lists of any length, as these tables have them."""
    return pa.schema([pa.field(each.name, _list_type(each.type)) for each in schema])


def _list_type(column: pa.DataType) -> pa.DataType:
    if pa.types.is_fixed_size_list(column) or pa.types.is_list(column):
        return pa.list_(_list_type(column.value_type))
    return column
