"""The steps of a run, from the plan to the published manifest.

Knows Ray only through engine/. The order of the steps is the guarantee: job.json before any part; parts in any order,
by any worker; the proof of coverage and the canary before the manifest; the manifest last.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TextIO

from varve.backfill.backfill import Backfill
from varve.cluster.placement import Placement
from varve.config.job import Job
from varve.config.output import Output
from varve.driver.canary_task import compare
from varve.driver.lap_timer import LapTimer
from varve.driver.run_manifest import make_manifest
from varve.engine.dataflow import DataflowResult, run_dataflow
from varve.engine.parallel import LARGE_BYTES, in_threads, is_large
from varve.engine.ray_tasks import spread
from varve.errors import JobError, RunError
from varve.monitoring.history_file import HistoryFile
from varve.monitoring.row_errors import list_reasons, too_many_errors
from varve.output import manifest
from varve.output.dataset_card import update_card
from varve.output.manifest import Manifest
from varve.output.part_file import Part
from varve.output.part_layout import PartLayout
from varve.output.part_table import PartTable
from varve.planning.plan import Plan
from varve.planning.saved_job import read_job
from varve.planning.saved_plan import prepare, save_plan
from varve.ranges import Missing, Range
from varve.storage.object_store import Storage

logger = logging.getLogger(__name__)

_WEAK_STORE = (
    "%s ignores conditional writes: Varve checks for an existing object before each write instead. Two runs at the "
    "same time may write a part twice, with the same content"
)
_MAX_SHOWN_GAPS = 20

Committed = Mapping[int, Mapping[Range, int]]  # shard → rows of each committed part → bytes of its file


def check_same_job(job: Job, storage: Storage) -> None:
    """Check that a finished output is that of this job; writes the dataset card if the run ended before it did.

    Raises:
        JobError: it belongs to another job.
    """
    prepare(job, storage, device="cpu")  # the saved plan is used, so the device decides nothing
    update_card(job.output.path)


def run_table_job(
    backfill: Backfill, start: Callable[[], Placement], timer: LapTimer, progress: TextIO | None = None
) -> Manifest:
    """Find the rows that changed, encode them, check them, and publish them in the table; see `run_job`.

    Args:
        backfill: the run.
        start: starts Ray; called only if tables are large or there are rows to encode.
        timer: see `run_job`.
        progress: likewise.
    """
    storage = Storage(backfill.job.output.path, patient=False)
    storage = replace(storage, conditional=storage.check())
    placement = start() if backfill.size_bytes > LARGE_BYTES else None
    work = spread if placement else in_threads
    selection = backfill.select(replace(storage, patient=True), work)
    timer.lap("diff")
    if selection.files and placement is None:
        placement = start()

    def publish(storage: Storage, parts: PartTable) -> dict[str, Any]:
        many = placement is not None and is_large(0, len(parts))  # few bytes may be many parts
        return backfill.publish(storage, parts, selection, spread if many else work)

    return run_job(backfill.job, storage, placement, timer, progress, layout=backfill.layout, publish=publish)


def run_job(
    job: Job,
    storage: Storage,
    placement: Placement | None,
    timer: LapTimer,
    progress: TextIO | None = None,
    *,
    wait: Callable[[], None] | None = None,
    layout: PartLayout | None = None,
    publish: Callable[[Storage, PartTable], dict[str, Any]] = lambda _storage, _parts: {},
) -> Manifest:
    """Plan, encode what is missing, check and publish.

    Args:
        job: what to run.
        storage: the output, not finished yet.
        placement: where replicas run; None if no row is missing.
        timer: has measured the phases up to here.
        progress: terminal or file for the progress line; None logs progress instead.
        wait: waits for Ray's workers, and raises RunError if none starts.
        layout: of the parts, if they become files of a lake table.
        publish: called with (the output, its checked parts) before the manifest is written; returns its `table`.

    Raises:
        JobError: the job can't be run as it is.
        RunError: the run failed. Committed parts stay.
    """
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    plan = prepare(job, storage, device=placement.device if placement else "cpu")
    missing, committed_rows = _find_missing(plan, storage)
    storage = _claim(plan, storage)
    _log_start(plan, storage, committed_rows)
    with HistoryFile(storage, timer.started_at) if missing and placement else nullcontext() as history:
        timer.lap("plan")
        if wait:
            wait()
        timer.lap("imports")
        result = None
        if placement and history:
            history.note_phases(timer.laps)
            result = run_dataflow(plan, storage, missing, committed_rows, placement, progress, layout, history)
        timer.lap("graph")
        parts, checked = _check(plan, storage, result, in_task=placement is not None)
        timer.lap("check")
        table = publish(storage, parts)
        timer.lap("publish")
        made = make_manifest(plan, storage, parts, started_at, timer.laps, result, checked, table)
        finished = _publish(storage, made)
        if job.output.table is None:
            update_card(job.output.path)
        return finished


def _check(
    plan: Plan, storage: Storage, result: DataflowResult | None, *, in_task: bool
) -> tuple[PartTable, dict[str, Any]]:
    """(the records of all parts, what the canary found), once the parts are complete and right.

    Raises:
        RunError: they are not, or the run was stopped.
    """
    parts = _read_committed(plan, storage, result)
    _check_fingerprints(parts, plan, storage)
    _check_rows(parts, plan.job.output, storage)
    checked = compare(plan, storage, parts, in_task=in_task)
    if not checked["passed"]:
        raise RunError(f"{storage.uri}: not published:\n  " + "\n  ".join(checked["failed"]))
    return parts, checked


def _find_missing(plan: Plan, storage: Storage) -> tuple[Mapping[int, Missing], int]:
    """(what is missing of each shard, committed rows).

    Raises:
        JobError: there are parts without the job that wrote them.
    """
    committed = _committed(plan, storage)
    if committed and read_job(storage) is None:
        msg = f"output.path: {storage.uri} holds parts, but not the job that wrote them. Choose another output.path"
        raise JobError(msg)
    missing = manifest.missing(committed, plan.resolved.num_shards, plan.resolved.rows_per_part, storage.uri)
    return missing, _count_rows(committed)


def _committed(plan: Plan, storage: Storage) -> Committed:
    resolved = plan.resolved
    splits = manifest.splits(resolved.num_shards, resolved.rows_per_part, plan.dataset.shard_rows)
    return manifest.committed(storage, splits)


def _claim(plan: Plan, storage: Storage) -> Storage:
    """Write job.json, and settle how parts are written."""
    save_plan(plan, storage)
    if storage.is_local:  # checked after the plan: a wrong job must leave no folder behind
        storage = replace(storage, conditional=storage.check())
    return replace(storage, patient=True)


def _log_start(plan: Plan, storage: Storage, committed_rows: int) -> None:
    shard_rows = plan.dataset.shard_rows
    rows = "number of rows not known yet" if shard_rows is None else f"{sum(shard_rows):,} rows"
    resumed = f", {committed_rows:,} already committed" if committed_rows else ""
    logger.info("%d shard(s), %s%s → %s", plan.resolved.num_shards, rows, resumed, plan.job.output.root)
    if not storage.conditional:
        logger.warning(_WEAK_STORE, storage.uri)
    for note in plan.notes:
        logger.warning(note)


def _read_committed(plan: Plan, storage: Storage, result: DataflowResult | None) -> PartTable:
    """The records of all parts, once these cover the source exactly once.

    Raises:
        RunError: the run was stopped, or rows are missing or covered twice.
    """
    resolved, committed = plan.resolved, _committed(plan, storage)
    if result and result.stop_reason:
        msg = f"{storage.uri}: {result.stop_reason}. {_progress(committed, plan)}. The same command resumes the run"
        raise RunError(msg)
    gaps = manifest.coverage_gaps(committed, resolved.num_shards, resolved.rows_per_part, plan.dataset.shard_rows)
    if gaps:
        listed = "\n  ".join(gaps[:_MAX_SHOWN_GAPS])
        msg = f"{storage.uri}: the parts do not cover the source exactly once:\n  {listed}"
        raise RunError(msg)
    return manifest.read_parts(storage, committed, result.parts if result else ())


def _progress(committed: Committed, plan: Plan) -> str:
    rows = plan.dataset.shard_rows
    num_parts = sum(map(len, committed.values()))
    total = f" of {sum(rows):,}" if rows else ""
    return f"{_count_rows(committed):,}{total} rows are committed, in {num_parts:,} part(s)"


def _count_rows(committed: Committed) -> int:
    return sum(part.num_rows for parts in committed.values() for part in parts)


def _check_fingerprints(parts: Iterable[Part], plan: Plan, storage: Storage) -> None:
    """Check that all parts are of this job, since a part's name says only which rows it holds."""
    foreign = [part.name for part in parts if part.fingerprint != plan.fingerprint]
    if foreign:
        msg = (
            f"{storage.uri}: {len(foreign)} part(s) belong to another job, for example {foreign[0]}. Move them to "
            "another folder and run the same command again"
        )
        raise RunError(msg)


def _check_rows(parts: PartTable, output: Output, storage: Storage) -> None:
    """Check that there are good rows and few failures, over all runs of the job; replicas check their own run."""
    limit, num_bad = output.error_limit(parts.num_rows), parts.num_errors + parts.num_null_texts
    if limit is not None and parts.num_errors > limit:
        message = too_many_errors(parts.num_errors, output.max_errors, limit, parts.error_reasons)
    elif parts.num_rows and num_bad == parts.num_rows:
        failures = f", {parts.num_errors:,} failed: {list_reasons(parts.error_reasons)}" if parts.num_errors else ""
        message = f"none of {num_bad:,} rows has features: {parts.num_null_texts:,} have a null text{failures}"
    else:
        return
    msg = f"{storage.uri}: not published: {message}. The column `error` of the parts has the reason of each row"
    raise RunError(msg)


def _publish(storage: Storage, finished: Manifest) -> Manifest:
    published, is_ours = manifest.publish(storage, finished)
    if not is_ours:
        logger.warning("another run of this job published its manifest first: the output is complete, and it is kept")
    return published
