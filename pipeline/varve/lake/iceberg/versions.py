"""Finds the snapshot that `source.at` names: an id, a branch, a tag or a time. Knows nothing of files."""

from datetime import UTC, datetime

from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot

from varve.config.table_address import TableAddress
from varve.errors import JobError

_MAX_SHOWN = 5


def find_snapshot(address: TableAddress, table: Table, at: str | int | None) -> Snapshot | None:
    """The snapshot; None for the current one of a table without snapshots.

    Args:
        address: for messages.
        table: just loaded.
        at: None, a snapshot id, the name of a branch or tag, or an ISO timestamp (UTC if it has no offset) at which the
            snapshot was current.

    Raises:
        JobError: there is no such snapshot.
    """
    if at is None:
        return table.current_snapshot()
    if found := _named(table, at):
        return found
    refs = ", ".join(sorted(table.refs())) or "none"
    recent = ", ".join(f"{each.snapshot_id} of {_time(each.timestamp_ms)}" for each in _recent(table)) or "none"
    msg = (
        f"source.at: {address} has no snapshot, branch or tag {str(at)!r}, and none that was current at such a time. "
        f"Branches and tags: {refs}. Latest snapshots: {recent}"
    )
    raise JobError(msg)


def _named(table: Table, at: str | int) -> Snapshot | None:
    if isinstance(at, int):
        return table.snapshot_by_id(at)
    if found := table.snapshot_by_name(at):
        return found
    if at.isdecimal():
        return table.snapshot_by_id(int(at))
    try:
        time = datetime.fromisoformat(at)
    except ValueError:
        return None
    time = time if time.tzinfo else time.replace(tzinfo=UTC)
    return table.snapshot_as_of_timestamp(int(time.timestamp() * 1000))


def _recent(table: Table) -> list[Snapshot]:
    return sorted(table.snapshots(), key=lambda each: each.timestamp_ms, reverse=True)[:_MAX_SHOWN]


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
