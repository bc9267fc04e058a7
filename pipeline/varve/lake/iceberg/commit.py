"""Commits of feature tables in Iceberg: one snapshot staged on a branch, then main moved by one compare-and-swap.

Every request is conditional on the head for which the change was made. The outcome of a request whose answer is lost is
read from the table. Invariants: no commit is rebased; a snapshot is never added twice; the state is a table property,
set by the request that moves main.
"""

import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from pyiceberg.table import Table
from pyiceberg.table.refs import MAIN_BRANCH
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.table.update import (
    AddSnapshotUpdate,
    AssertRefSnapshotId,
    AssertTableUUID,
    RemoveSnapshotRefUpdate,
    RemoveSnapshotsUpdate,
    SetPropertiesUpdate,
    SetSnapshotRefUpdate,
    TableUpdate,
)

from varve.config.table_address import TableAddress
from varve.errors import RunError, VarveError
from varve.lake.iceberg.catalog import describe, is_denied, load_table, open_catalog
from varve.lake.iceberg.snapshot import branch_name, delete_manifests, make_snapshot, snapshot_id
from varve.lake.iceberg.state import (
    FEATURE_SET_PROPERTY,
    described_snapshot,
    encode_state,
    property_name,
    read_state,
    summary_of,
)
from varve.lake.table import Change, HeadMovedError

R = TypeVar("R")

_MAX_ATTEMPTS = 40
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.05, 2.0


def stage(address: TableAddress, change: Change) -> int | None:
    """Put the snapshot of a change on its branch; returns its id; `change.head` for a change without files.

    Raises:
        HeadMovedError: main is not `change.head`.
        RunError: the catalog failed.
    """
    if not _has_snapshot(change):
        return change.head
    made: list[Snapshot] = []

    def attempt(table: Table) -> int | None:
        number = snapshot_id(table, change)
        branch, staged = branch_name(number), table.snapshot_by_id(number)
        if staged is not None:
            _clean(table, made, staged)
            if _is_published(table, change) or _points_to(table, branch, number):
                return number
        elif _is_published(table, change):
            msg = f"{address}: another driver has published the run, on another head than {change.head}"
            raise HeadMovedError(msg)
        _check_head(address, table, change)
        updates: list[TableUpdate] = [
            *_discard(table, _left_branches(table, change) - {branch}),
            _point(branch, number),
        ]
        if staged is None:
            # A snapshot holds the table's next sequence number, so each attempt makes its own.
            made.append(make_snapshot(table, change))
            updates.insert(0, AddSnapshotUpdate(snapshot=made[-1]))
        _send(address, table, updates, {MAIN_BRANCH: change.head})
        if made:
            _clean(table, made, made[-1])
        return number

    return _repeat(address, attempt)


def publish(address: TableAddress, change: Change) -> int:
    """Move main to the staged snapshot and set the state, in one request; returns the snapshot's id.

    Raises:
        HeadMovedError: main is not `change.head`.
        RunError: the catalog failed.
    """
    name = property_name(change.state.feature_set)

    def attempt(table: Table) -> int | None:
        if _is_published(table, change):
            return described_snapshot(table, change.state.feature_set)
        _check_head(address, table, change)
        updates: list[TableUpdate] = []
        refs = {MAIN_BRANCH: change.head}
        number = change.head
        if _has_snapshot(change):
            number = snapshot_id(table, change)
            if not _points_to(table, branch_name(number), number):
                stage(address, change)
                return None
            refs[branch_name(number)] = number
            updates.append(_point(MAIN_BRANCH, number))
            updates.append(_drop(branch_name(number)))
        # The parent of each of these branches is an older snapshot than main from now on.
        updates += _discard(table, _staged_branches(table, change.state.feature_set) - set(refs))
        updates.append(SetPropertiesUpdate(updates={name: encode_state(change.state, number)}))
        _send(address, table, updates, refs)
        return number

    return _repeat(address, attempt)


def unstage(address: TableAddress, change: Change) -> None:
    """Remove the branch and the snapshot of a change, if they are there.

    Raises:
        RunError: the catalog failed.
    """

    def attempt(table: Table) -> bool:
        number = snapshot_id(table, change)
        branch = branch_name(number)
        if _points_to(table, branch, number):
            _send(address, table, _discard(table, {branch}), {branch: number})
        return True

    _repeat(address, attempt)


def _repeat(address: TableAddress, attempt: Callable[[Table], R | None]) -> R:
    """Load the table and try, until an attempt returns a result; after an error, the next one reads the table."""
    error: BaseException | None = None
    for pause_s in _pauses():
        table = load_table(address)
        try:
            if (result := attempt(table)) is not None:
                return result
            continue
        except VarveError:
            raise
        except Exception as e:  # noqa: BLE001 (whatever failed, the next attempt reads the table)
            error = e
            if is_denied(e):
                break
        time.sleep(pause_s)
    reason = describe(error, address.catalog) if error else "other commits came first"
    msg = f"{address}: the commit failed: {reason}: run the same command again"
    raise RunError(msg) from error


def _pauses() -> Iterator[float]:
    for attempt in range(_MAX_ATTEMPTS):
        yield random.uniform(0, min(_MAX_PAUSE_S, _FIRST_PAUSE_S * 2**attempt))  # noqa: S311 (no secret)


def _send(address: TableAddress, table: Table, updates: list[TableUpdate], refs: dict[str, int | None]) -> None:
    """One request: all updates, if the references are still those."""
    required = [
        AssertRefSnapshotId.model_validate({"ref": name, "snapshot-id": number}) for name, number in refs.items()
    ]
    requirements = (AssertTableUUID(uuid=table.metadata.table_uuid), *required)
    open_catalog(address.catalog).commit_table(table, requirements, tuple(updates))


def _clean(table: Table, made: list[Snapshot], taken: Snapshot) -> None:
    """Delete the manifests of snapshots that have the id of one that the catalog took."""
    for each in made:
        if each.manifest_list != taken.manifest_list:
            delete_manifests(table.io, each)
    made.clear()


def _has_snapshot(change: Change) -> bool:
    """Whether a change makes a snapshot; the first of a table does so even without files."""
    return bool(change.adds or change.removes or change.head is None)


def _is_published(table: Table, change: Change) -> bool:
    return read_state(table, change.state.feature_set) == change.state


def _check_head(address: TableAddress, table: Table, change: Change) -> None:
    head = table.metadata.current_snapshot_id
    if head != change.head:
        msg = f"{address}: another commit came first: the current snapshot is {head}, expected {change.head}"
        raise HeadMovedError(msg)


def _points_to(table: Table, branch: str, number: int) -> bool:
    ref = table.refs().get(branch)
    return ref is not None and ref.snapshot_id == number


def _point(branch: str, number: int) -> SetSnapshotRefUpdate:
    return SetSnapshotRefUpdate.model_validate({"ref-name": branch, "type": "branch", "snapshot-id": number})


def _drop(branch: str) -> RemoveSnapshotRefUpdate:
    return RemoveSnapshotRefUpdate.model_validate({"ref-name": branch})


def _discard(table: Table, branches: set[str]) -> list[TableUpdate]:
    """Remove branches and their snapshots.

    Otherwise the expiry of a snapshot that was never published may delete files that another snapshot has by then.
    """
    if not branches:
        return []
    numbers = [table.refs()[name].snapshot_id for name in sorted(branches)]
    return [*map(_drop, sorted(branches)), RemoveSnapshotsUpdate.model_validate({"snapshot-ids": numbers})]


def _staged_branches(table: Table, feature_set: str) -> set[str]:
    """Branches with staged snapshots of a feature set; a user's branch has another name than its snapshot's."""
    named = {name: ref.snapshot_id for name, ref in table.refs().items() if name == branch_name(ref.snapshot_id)}
    snapshots = {name: table.snapshot_by_id(number) for name, number in named.items()}
    return {
        name for name, each in snapshots.items() if each and summary_of(each).get(FEATURE_SET_PROPERTY) == feature_set
    }


def _left_branches(table: Table, change: Change) -> set[str]:
    """Branches of interrupted runs: their parent is no longer main."""
    return {
        name
        for name in _staged_branches(table, change.state.feature_set)
        if (staged := table.snapshot_by_name(name)) and staged.parent_snapshot_id != change.head
    }
