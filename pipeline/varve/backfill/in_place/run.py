"""A run whose features become columns of the source's own table: which columns they are, and where its files lie.

Knows nothing of Ray. Invariants: a run is a function of the feature set, the table, its pinned version and the version
with which the columns are in step; an interrupted run is continued with the version that it had pinned.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from varve.backfill.in_place.lance_columns import LanceColumns
from varve.backfill.in_place.rewritten_columns import RewrittenColumns
from varve.backfill.table_columns import check_types
from varve.config.job import Job
from varve.config.table_address import parse_table_address
from varve.encoder.feature_plan import ROW_COLUMNS
from varve.errors import JobError
from varve.lake.open_table import open_table
from varve.lake.table import Pin, State
from varve.output.manifest import read_manifest
from varve.planning.feature_set import FeatureSet, find_feature_set
from varve.planning.saved_job import read_job
from varve.storage.object_store import Storage

Columns = LanceColumns | RewrittenColumns
_RUN_CHARACTERS = 16  # of the hash in a folder's name


@dataclass(frozen=True, slots=True)
class InPlaceRun:
    """A run whose table is open.

    Attributes:
        job: with the pinned version, and the run's folder as output.path.
        columns: of the feature set.
        pin: version of the table that is read.
        state: with what the columns are in step; None at first.
        since: version whose files need not be looked at again; None: all files are.
        run: SHA-256 of the run.
    """

    job: Job
    columns: Columns
    pin: Pin
    state: State | None
    since: int | None
    run: str

    @property
    def version(self) -> int:
        """That is read."""
        assert self.pin.version is not None
        return self.pin.version


def open_in_place(job: Job, *, create: bool) -> InPlaceRun:
    """Open the table of a job whose features become columns of it.

    Args:
        job: with the same table as source and output.
        create: add the columns, and protect the version that is read from cleanup.

    Raises:
        JobError: the table does not exist or does not fit the job.
        RunError: a store failed.
    """
    address = parse_table_address(job.source.table or "")
    if str(address) != str(parse_table_address(job.output.table or "")):
        why = "Lance features are columns of the source" if address.format == "lance" else "output.columns is rewrite"
        msg = f"output.table: {job.output.table} is not the source, but {why}: name {address}"
        raise JobError(msg)
    if job.source.at is not None:
        msg = f"source.at: {job.source.at} is not allowed: columns are added to the current version of {address}"
        raise JobError(msg)
    if address.format != "lance" and job.source.key is None:
        msg = f"source.key is missing: name the column that identifies a row of {address}"
        raise JobError(msg)
    features = find_feature_set(job)
    columns = _columns_of(features, job)
    table: Any = columns.table
    if address.format != "lance":
        check_types(job, features.feature_plan)
    if create:
        columns.prepare(features.output_schema(pa.schema([])))
    pin, state = table.pin(None), columns.state()
    if state and (unfinished := _continue_run(features.job, columns, table, state)):
        return unfinished
    in_step = state is not None and job.output.since != "full" and _texts(state) == [*job.source.text_columns]
    since = state.source_version if state and in_step else None
    if create and since != pin.version:
        pin = table.pin(columns.protect(pin.version))
    if state and since == pin.version:
        return _make_run(features.job, columns, pin, state, since, state.run, state.folder)
    content = [features.sha256, pin.uuid, since, pin.version]
    run = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    folder = f"{_folder(table)}/{run[:_RUN_CHARACTERS]}"
    return _make_run(features.job, columns, pin, state, since, run, folder)


def open_columns(job: Job) -> Columns:
    """The columns of a job's feature set in the table of its texts.

    Raises:
        JobError: the model or the table cannot be opened.
    """
    return _columns_of(find_feature_set(job), job)


def _columns_of(features: FeatureSet, job: Job) -> Columns:
    address = parse_table_address(job.source.table or "")
    kind: Any = LanceColumns if address.format == "lance" else RewrittenColumns
    return kind(open_table(address), features.sha256, _names(features), job.source.text_columns)


def _continue_run(job: Job, columns: Columns, table: Any, state: State) -> InPlaceRun | None:
    """The run that was committed but has no manifest yet, with the version that it read; None if it has one."""
    storage = Storage(state.folder, patient=False)
    stored = read_job(storage)
    if stored is None or read_manifest(storage) is not None:
        return None
    version = stored["job"]["source"]["at"]
    pin = Pin(state.source_uuid, version, table.pin(None).schema)
    return _make_run(job, columns, pin, state, None, state.run, state.folder)


def _make_run(
    job: Job,
    columns: Columns,
    pin: Pin,
    state: State | None,
    since: int | None,
    run: str,
    folder: str,
) -> InPlaceRun:
    address = str(columns.table.address)
    update = {
        "source": job.source.model_copy(update={"at": pin.version, "table": address}),
        "output": job.output.model_copy(update={"path": folder, "table": address}),
    }
    return InPlaceRun(job.model_copy(update=update), columns, pin, state, since, run)


def _folder(table: Any) -> str:
    """Where folders of runs lie; Lance knows nothing of other folders in that of a dataset."""
    return f"{table.uri}/_varve" if table.address.format == "lance" else table.folder


def _names(features: FeatureSet) -> tuple[str, ...]:
    """The feature columns as parts store them, without kept columns and columns about rows."""
    schema = features.output_schema(pa.schema([]))
    return tuple(name for name in schema.names if name not in ROW_COLUMNS)


def _texts(state: State) -> list[str]:
    """The text columns of the run that the columns are of."""
    stored = read_job(Storage(state.folder, patient=False))
    return [*Job.reopen(stored["job"], where=state.folder).source.text_columns] if stored else []
