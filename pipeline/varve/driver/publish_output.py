"""Publishes the rows of a finished folder output in a feature table, without encoding a text again.

It is the run of an ordinary job from table to table, whose missing parts are copied from the output. So `varve embed`
with the same job continues from there, and all checks before the commit are those of a run. Knows nothing of Ray.
"""

from dataclasses import replace
from typing import Any, Literal

from varve.backfill.finished_output import FinishedOutput
from varve.backfill.open_backfill import open_backfill
from varve.backfill.output_copy import copy_rows
from varve.config.job import Job
from varve.config.table_address import TableAddress
from varve.driver.embed import Outcome
from varve.driver.job_run import run_job
from varve.driver.lap_timer import LapTimer
from varve.engine.parallel import Spread
from varve.errors import JobError
from varve.output.manifest import read_manifest
from varve.output.part_table import PartTable
from varve.planning.plan import Plan
from varve.planning.saved_job import read_job
from varve.planning.saved_plan import prepare, save_plan
from varve.storage.object_store import Storage


def publish_output(
    finished: FinishedOutput, address: TableAddress, key: str, partition: Literal["source", "none"], spread: Spread
) -> Outcome:
    """Publish the new and changed rows of an output by one commit, and remove the rows that left its source.

    Args:
        finished: the output.
        address: of the feature table, which is created if it does not exist.
        key: column that identifies a row.
        partition: of the table: as its source is partitioned, or none.
        spread: runs work on files in parallel.

    Raises:
        JobError: the rows do not fit the table, or a key is null or in several rows.
        RunError: it was not published. The same call resumes.
    """
    timer = LapTimer()
    backfill = open_backfill(finished.job_to(address, key, partition))
    storage = Storage(backfill.job.output.path, patient=False)
    if backfill.is_in_step and (published := read_manifest(storage)):
        return Outcome(published, finished_before=True)
    storage = replace(storage, conditional=storage.check())
    selection = backfill.select(replace(storage, patient=True), spread)
    timer.lap("diff")
    plan = _plan(finished, backfill.job, storage)
    assert backfill.layout is not None
    copy_rows(finished.output, finished.plan.dataset, plan, selection, backfill.layout, storage, spread)
    timer.lap("graph")

    def publish(storage: Storage, parts: PartTable) -> dict[str, Any]:
        return backfill.publish(storage, parts, selection, spread) | {"output": finished.output.path}

    manifest = run_job(backfill.job, storage, None, timer, layout=backfill.layout, publish=publish)
    return Outcome(manifest, finished_before=False)


def _plan(finished: FinishedOutput, job: Job, storage: Storage) -> Plan:
    """The plan of the run, with the settings that the output was encoded with; it is saved."""
    is_begun = read_job(storage) is not None
    plan = prepare(job, storage, device="cpu")
    if plan.resolved.max_tokens != finished.plan.resolved.max_tokens:
        msg = (
            f"{finished.output.path}: its texts have up to {finished.plan.resolved.max_tokens} tokens, those of this "
            f"version of Varve {plan.resolved.max_tokens}: set model.max_tokens, and run the job again"
        )
        raise JobError(msg)
    resolved = replace(plan.resolved, **finished.encoding)
    if is_begun and resolved != plan.resolved:
        msg = (
            f"{storage.uri} is an unfinished run of varve embed to this table, with other settings than "
            f"{finished.output.path}: run varve embed again to finish it, or delete this folder"
        )
        raise JobError(msg)
    plan = replace(plan, resolved=resolved)
    save_plan(plan, storage)
    return plan
