"""What a feature table is in step with, from its metadata and the record of its last run; opens no data file."""

from typing import Any

from varve.backfill.in_place.lance_columns import lance_states
from varve.config.job import Job
from varve.config.table_address import TableAddress, parse_table_address
from varve.errors import JobError
from varve.lake.open_table import open_table
from varve.lake.table import State
from varve.planning.saved_job import read_job
from varve.storage.object_store import Storage


def read_table_status(address: TableAddress) -> dict[str, Any]:
    """Return {"table", "version", "feature_sets": [{"feature_set", "source", "source_version", "in_step", ...}]}.

    Raises:
        JobError: there is no such table, or it holds no features.
        RunError: a catalog or store failed.
    """
    version, states = read_states(address)
    return {"table": str(address), "version": version, "feature_sets": [_describe(state) for state in states]}


def read_states(address: TableAddress) -> tuple[int | None, list[State]]:
    """(version of a table, what each of its feature sets is in step with).

    Raises:
        JobError: there is no such table, or it holds no features.
    """
    table: Any = open_table(address)
    version = table.pin(None).version
    states = lance_states(table) if address.format == "lance" else table.states()
    if not states:
        msg = f"{address} holds no features of Varve"
        raise JobError(msg)
    return version, states


def _describe(state: State) -> dict[str, Any]:
    stored = read_job(Storage(state.folder, patient=False))
    source = Job.reopen(stored["job"], where=state.folder).source.table if stored else None
    current = open_table(parse_table_address(source)).pin(None) if source else None
    is_same = current is not None and current.uuid == state.source_uuid
    return {
        "feature_set": state.feature_set,
        "source": source,
        "source_version": state.source_version,
        "current_version": current.version if current else None,
        "in_step": is_same and current is not None and current.version == state.source_version,
        "run": state.run,
        "folder": state.folder,
    }
