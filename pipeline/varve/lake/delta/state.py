"""What a Delta table of features is in step with, as application transactions of its log.

A transaction holds one number. So a commit has two: `varve-F12` with the version of the source, and `varve-F12-state`
with the first 60 bits of the SHA-256 of an object that holds the whole state, below _varve/, which VACUUM passes over.
The object is written before the commit and its name is a function of its content, so it is never the wrong one;
transactions outlive checkpoints and the cleaning of the log. Invariant: RESTORE, which leaves transactions as they are,
takes the state back to that of the restored version.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from deltalake import DeltaTable as DeltaVersion
from deltalake import Transaction

from varve.errors import RunError
from varve.lake.delta.log import library_errors, open_version, retried
from varve.lake.table import State
from varve.storage.object_store import Storage

_ID_BITS = 60
_MORE_COMMITS = 16  # that may be made while the log is read


@dataclass(frozen=True, slots=True)
class StateRecord:
    """A state and the version that made it true."""

    state: State
    version: int

    @property
    def content(self) -> bytes:
        """JSON of the record."""
        return json.dumps({**asdict(self.state), "version": self.version}, sort_keys=True).encode()

    @property
    def id(self) -> int:
        """Number that names the record."""
        return int.from_bytes(hashlib.sha256(self.content).digest()[:8], "big") >> (64 - _ID_BITS)


def write_state(name: str, record: StateRecord) -> list[Transaction]:
    """Write the object of a state; returns the transactions of the commit that makes it true.

    Raises:
        RunError: the store failed.
    """
    Storage(name).create(_object_name(record.id), record.content)
    app = _app(record.state.feature_set)
    return [Transaction(app, record.state.source_version), Transaction(f"{app}-state", record.id)]


def find_state(name: str, version: DeltaVersion, feature_set: str) -> StateRecord | None:
    """The state of an opened version; None if it has none of this feature set.

    Raises:
        RunError: its object is missing, or the store failed.
        VersionExpiredError: the version to which the table was restored is gone.
    """
    with library_errors(name, "read"):
        number = retried(lambda: version.transaction_version(f"{_app(feature_set)}-state"))
    if number is None:
        return None
    record = _read_record(name, number)
    restored = _restored_version(name, record.version, version.version())
    if restored is None:
        return record if record.state.feature_set == feature_set else None
    return find_state(name, open_version(name, restored), feature_set)


def _restored_version(name: str, after: int, until: int) -> int | None:
    """The version that the last RESTORE within (after, until] took the table back to; None without one."""
    if after >= until:
        return None
    latest = open_version(name)
    with library_errors(name, "read"):
        history = retried(lambda: latest.history(latest.version() - after + _MORE_COMMITS))
    for entry in history:
        if entry.get("operation") == "RESTORE" and after < entry["version"] <= until:
            return _target(name, entry.get("operationParameters") or {})
    return None


def _target(name: str, parameters: dict[str, Any]) -> int:
    """The version that a RESTORE names by number or by time."""
    if str(parameters.get("version") or "").isdigit():
        return int(parameters["version"])
    time = str(parameters.get("timestamp") or parameters.get("datetime") or "")
    try:
        when = datetime.fromtimestamp(int(time) / 1000, UTC) if time.isdigit() else datetime.fromisoformat(time)
    except ValueError as e:
        msg = f"delta+{name}: the version that RESTORE took the table back to is not known: {parameters}"
        raise RunError(msg) from e
    version = open_version(name)
    with library_errors(name, "read"):
        retried(lambda: version.load_as_version(when if when.tzinfo else when.replace(tzinfo=UTC)))
    return version.version()


def _read_record(name: str, number: int) -> StateRecord:
    content = Storage(name, patient=False).read(_object_name(number))
    try:
        stored: dict[str, Any] = json.loads(content or b"")
        version = stored.pop("version")
        record = StateRecord(State(**stored), version)
    except (ValueError, KeyError, TypeError) as e:
        msg = (
            f"{name}/{_object_name(number)} is {'damaged' if content else 'missing'}: it holds the version of the "
            "source that the table has the features of. Restore it, or delete the table and run the same command again"
        )
        raise RunError(msg) from e
    return record


def _app(feature_set: str) -> str:
    return f"varve-{feature_set[:12]}"


def _object_name(number: int) -> str:
    return f"_varve/state/{number:016x}.json"
