"""Verifies features that are columns of the table of the texts: changes nothing.

The hash of every text is compared with the stored one, and sampled rows are encoded again by plain transformers.
"""

import tempfile
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from varve.backfill.in_place.diff import select_in_place
from varve.backfill.in_place.rows import OwnColumns
from varve.backfill.in_place.run import open_columns
from varve.backfill.key_sample import sample_rows
from varve.config.job import Job
from varve.engine.parallel import Spread
from varve.errors import VarveError
from varve.lake.table import State
from varve.planning.saved_job import read_job
from varve.planning.saved_plan import CodePermission
from varve.source.row_selection import RowSelection
from varve.storage.object_store import Storage
from varve.verification.canary import ROWS, Comparison
from varve.verification.check import Check
from varve.verification.reopened_run import reopen_run

_MAX_SHOWN = 5


def check_in_place(job: Job, state: State, permission: CodePermission, spread: Spread) -> list[Check]:
    """Check the columns of a feature set.

    Args:
        job: of its last run.
        state: of the columns.
        permission: the code that may run.
        spread: runs work on files in parallel.

    Raises:
        JobError: the table does not exist, or its columns are not those of the job.
        RunError: a store failed.
    """
    columns = open_columns(job)
    version = columns.table.pin(None).version
    assert version is not None
    with tempfile.TemporaryDirectory() as folder:
        selection = select_in_place(
            columns.table, version, None, columns.own.hash, columns.text_columns, Storage(folder), spread
        )
        rows = Check("rows", tuple(_row_failures(selection)))
    return [rows, _check_canary(columns, version, job, state, permission)]


def _row_failures(selection: RowSelection) -> Iterator[str]:
    counts = selection.counts
    for name, what in (("new", "have no features yet"), ("changed", "have features of another text")):
        if counts[name]:
            yield f"{counts[name]:,} row(s) {what}, among {', '.join(_places(selection))}: run the job again"


def _places(selection: RowSelection) -> list[str]:
    """Some of the selected rows."""
    places = []
    for shard, file in enumerate(selection.files[:_MAX_SHOWN]):
        positions = selection.positions(shard)
        rows = "all rows" if positions is None else f"rows {positions[:_MAX_SHOWN].tolist()}"
        places.append(f"{rows} of {file.path}")
    return places


def _check_canary(columns: Any, version: int, job: Job, state: State, permission: CodePermission) -> Check:
    """Encode the texts of sampled rows again, and compare them with the stored vectors."""
    stored = read_job(Storage(state.folder, patient=False))
    reopened = reopen_run(stored or {}, state.folder, permission)
    if reopened.failures or reopened.plan is None:
        return Check("canary", reopened.failures, reopened.skipped)
    plan = reopened.plan
    comparison = Comparison(job.source.model_copy(update={"keep": (), "key": None, "table": None}), plan)
    own: OwnColumns = columns.own
    try:
        rows = sample_rows(columns.table, version, [*columns.text_columns, *own.names], ROWS, int(state.run[:8], 16))
        for position in range(len(rows)):
            row = rows.slice(position, 1)
            if row[own.hash][0].is_valid:
                fields = [plan.schema.field(name) for name in own.features]
                values = [row[field.name].cast(field.type) for field in fields] + [row[own.error]]
                names = [*own.features, "error"]
                comparison.add(f"sampled row {position}", pa.table(values, names=names), row)
    except VarveError as e:
        return Check("canary", (str(e),), reopened.skipped)
    return Check("canary", tuple(comparison.report(expected=0)["failed"]), reopened.skipped)
