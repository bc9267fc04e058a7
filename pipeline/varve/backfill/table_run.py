"""One run from a source table to a feature table: what it is made of, and where its files are.

Knows nothing of Ray. Invariants: a run is a function of the feature set, the two tables, the pinned version of the
source and the version that the features are in step with, so two drivers of one job make the same run; its parts lie in
a folder that only this run writes.
"""

import hashlib
import json
from dataclasses import dataclass

import pyarrow as pa

from varve.backfill.table_columns import check_types, table_schema
from varve.config.job import Job
from varve.config.table_address import parse_table_address
from varve.errors import JobError
from varve.lake.open_table import open_feature_table, open_table
from varve.lake.table import Definition, FeatureTable, Pin, State, Table
from varve.lake.text_hash import HASH_TYPE, TEXT_HASH
from varve.output.part_layout import PartLayout
from varve.planning.feature_set import FeatureSet, find_feature_set
from varve.planning.saved_job import read_job
from varve.storage.object_store import Storage

_RUN_CHARACTERS = 16  # of the hash in a folder's name


@dataclass(frozen=True, slots=True)
class TableRun:
    """A run whose tables are open.

    Attributes:
        job: with the pinned version, the kept columns of the partition, and the run's folder as output.path.
        source: table that is read.
        pin: version of it.
        destination: table of the features.
        head: its version when the run began.
        feature_set: identity of the features.
        state: what the destination was in step with; None at first.
        since: version of the source whose files need not be looked at again; None: all files are.
        compared: kept columns that the destination has too, whose change makes a row a changed one.
        run: SHA-256 of the run.
        layout: of its part files.
    """

    job: Job
    source: Table
    pin: Pin
    destination: FeatureTable
    head: Pin | None
    feature_set: str
    state: State | None
    since: int | None
    compared: tuple[str, ...]
    run: str
    layout: PartLayout

    @property
    def version(self) -> int:
        """Of the source."""
        assert self.pin.version is not None
        return self.pin.version

    @property
    def is_in_step(self) -> bool:
        """Whether the destination has the features of this version of the source."""
        state = self.state
        return state is not None and state.source_version == self.version and state.run == self.run

    @property
    def new_state(self) -> State:
        """What is true once the run is published."""
        return State(self.feature_set, self.pin.uuid, self.version, self.run, self.job.output.path)


def open_run(job: Job, *, create: bool = True) -> TableRun:
    """Open the tables of a job.

    Args:
        job: with a table as source and as output.
        create: create the destination, or add kept columns to it, if it lacks them.

    Raises:
        JobError: a table or column does not exist or does not fit the job.
        RunError: a catalog or store failed.
    """
    if job.source.key is None:
        msg = "source.key is missing: name the column that identifies a row of the table"
        raise JobError(msg)
    features = find_feature_set(job)
    source = open_table(parse_table_address(job.source.table or ""))
    pin = source.pin(job.source.at)
    if pin.version is None:
        msg = f"source.table: {job.source.table} has no snapshot yet. Write rows to it first"
        raise JobError(msg)
    destination = open_feature_table(parse_table_address(job.output.table or ""))
    job = _keep_partition(features.job, pin)
    definition = _define(job, features, pin)
    _check_partition(job, source, pin, definition)
    exists = destination.exists()
    if create:
        destination.prepare(definition)
    head = destination.pin(None) if exists or create else None
    state = destination.state(features.sha256) if head else None
    return _make_run(job, features.sha256, (source, pin), (destination, head), state, definition)


def _make_run(
    job: Job,
    feature_set: str,
    source: tuple[Table, Pin],
    destination: tuple[FeatureTable, Pin | None],
    state: State | None,
    definition: Definition,
) -> TableRun:
    (table, pin), (features, head) = source, destination
    earlier = _earlier_job(job, state, pin)
    since = state.source_version if state and earlier and _may_continue(job, earlier) else None
    compared = tuple(name for name in job.source.keep if earlier and name in earlier.source.keep)
    content = [feature_set, pin.uuid, since, pin.version, head.uuid if head else None, _texts(job)]
    if job.output.since == "full" and head:
        content.append(head.version)
    run = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    folder = f"{features.folder}/{run[:_RUN_CHARACTERS]}" if head else ""
    if state and state.source_version == pin.version and since is not None:
        run, folder = state.run, state.folder
    pinned = job.model_copy(
        update={
            "source": job.source.model_copy(update={"at": pin.version, "table": str(table.address)}),
            "output": job.output.model_copy(update={"path": folder, "table": str(features.address)}),
        }
    )
    ids = features.field_ids() if head else {}
    names = tuple(definition.schema.names)
    layout = PartLayout(names, definition.key, ids, fixed_binary=features.address.format != "delta")
    return TableRun(pinned, table, pin, features, head, feature_set, state, since, compared, run, layout)


def _earlier_job(job: Job, state: State | None, pin: Pin) -> Job | None:
    """The job of the last run; None if there was none, or its folder was deleted.

    Raises:
        JobError: the features are of another table.
    """
    if state is None:
        return None
    if state.source_uuid != pin.uuid:
        msg = (
            f"output.table: {job.output.table} holds features of another table than {job.source.table} (its uuid was "
            f"{state.source_uuid}, it is {pin.uuid}). Was the source replaced? Choose another output.table"
        )
        raise JobError(msg)
    stored = read_job(Storage(state.folder, patient=False))
    return Job.reopen(stored["job"], where=state.folder) if stored else None


def _may_continue(job: Job, earlier: Job) -> bool:
    """Whether files that the last run has read need not be looked at again."""
    return job.output.since == "auto" and _texts(earlier) == _texts(job)


def _texts(job: Job) -> list[str]:
    """The columns whose change makes a row another one."""
    return [job.source.key or "", *job.source.text_columns]


def _keep_partition(job: Job, pin: Pin) -> Job:
    """The job with the columns of the source's partition among the kept ones, if the destination has its partition."""
    if job.output.partition == "none":
        return job
    columns = [each.column for each in pin.partition if each.column != job.source.key]
    keep = tuple(dict.fromkeys((*job.source.keep, *columns)))
    return job.model_copy(update={"source": job.source.model_copy(update={"keep": keep})})


def _define(job: Job, features: FeatureSet, pin: Pin) -> Definition:
    """The definition of the destination.

    Raises:
        JobError: a column does not exist in the source, or tables cannot hold a feature.
    """
    if missing := [name for name in job.source.columns if name not in pin.schema.names]:
        msg = f"source: {job.source.table} has no column {missing[0]!r}. Its columns: {', '.join(pin.schema.names)}"
        raise JobError(msg)
    check_types(job, features.feature_plan)
    kept = [pin.schema.field(name) for name in job.source.kept if name != TEXT_HASH]
    schema = features.output_schema(pa.schema([*kept, pa.field(TEXT_HASH, HASH_TYPE)]))
    partition = () if job.output.partition == "none" else pin.partition
    return Definition(features.sha256, pin.uuid, job.source.key or "", table_schema(schema), partition)


def _check_partition(job: Job, source: Table, pin: Pin, definition: Definition) -> None:
    """Refuse files of an earlier partition of the source, whose rows lie in several partitions of the destination.

    Raises:
        JobError: there is one.
    """
    if not definition.partition:
        return
    if job.output.table and parse_table_address(job.output.table).format != source.address.format:
        msg = "output.partition: source needs tables of one format: set output.partition: none"
        raise JobError(msg)
    for file in source.files(pin.version):
        if len(json.loads(file.partition)) != len(definition.partition):
            msg = (
                f"output.partition: {file.path} of {job.source.table} is of an earlier partition of the table. Rewrite "
                "its files, or set output.partition: none"
            )
            raise JobError(msg)
