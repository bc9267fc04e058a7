"""The state of a feature set in a table's metadata: a property, and the summary of the snapshot that made it true.

Knows nothing of commits. Invariant: a state is set by the request that moves main.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict

from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot

from varve.lake.table import State

KEY_PROPERTY = "varve.key"
RUN_PROPERTY = "varve.run"
STATE_PROPERTY = "varve.state"
FEATURE_SET_PROPERTY = "varve.feature-set"


def property_name(feature_set: str) -> str:
    """The table property that holds the state of a feature set."""
    return f"varve.{feature_set[:12]}"


def read_state(table: Table, feature_set: str) -> State | None:
    """What main is in step with.

    A rollback of the table leaves its properties as they are: then the newest snapshot of main's history that has a
    state decides.
    """
    found = decode_state(table.properties, property_name(feature_set))
    if found is None or found[0].feature_set != feature_set:
        return None
    state, described = found
    if described is None or table.snapshot_by_id(described) is None:  # written without a snapshot, or expired
        return state
    history = _history(table)
    if any(each.snapshot_id == described for each in history):
        return state
    states = (decode_state(summary_of(each), STATE_PROPERTY) for each in history)
    return next((each[0] for each in states if each and each[0].feature_set == feature_set), None)


def read_states(table: Table) -> list[State]:
    """The state of each feature set of the table."""
    found = (decode_state(table.properties, name) for name in sorted(table.properties) if name.startswith("varve."))
    states = (read_state(table, each[0].feature_set) for each in found if each)
    return [state for state in states if state]


def described_snapshot(table: Table, feature_set: str) -> int | None:
    """The snapshot that the property of a feature set describes."""
    found = decode_state(table.properties, property_name(feature_set))
    return found[1] if found else None


def encode_state(state: State, snapshot: int | None) -> str:
    """A state as JSON, with the snapshot that it describes."""
    return json.dumps({**asdict(state), "snapshot": snapshot}, sort_keys=True)


def decode_state(properties: Mapping[str, str], name: str) -> tuple[State, int | None] | None:
    """(state, snapshot that it describes) from a property; None without a readable one."""
    try:
        fields = json.loads(properties[name])
        snapshot = fields.pop("snapshot")
        return State(**fields), snapshot
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def summary_of(snapshot: Snapshot) -> dict[str, str]:
    """The properties of a snapshot's summary."""
    return dict(snapshot.summary.additional_properties) if snapshot.summary else {}


def _history(table: Table) -> list[Snapshot]:
    """The current snapshot and its ancestors, as far as they have not expired."""
    by_id = {each.snapshot_id: each for each in table.snapshots()}
    history, each = [], table.current_snapshot()
    while each is not None:
        history.append(each)
        each = by_id.get(each.parent_snapshot_id) if each.parent_snapshot_id is not None else None
    return history
