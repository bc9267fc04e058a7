"""`embed` and its form for a process of Varve's own: start Ray, then run the job.

Ray's start mostly waits and the imports mostly compute, so both happen at the same time (infra/decisions/0005): this
file imports neither torch nor transformers, and job_run, which needs them, is imported while Ray starts.
"""

import gc
import os
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TextIO

from varve.cluster.prepared_ray import Imports, PreparedRay
from varve.config.job import Job
from varve.driver.lap_timer import LapTimer
from varve.encoder.checkpoint.local_folder import check_local_folder
from varve.output.manifest import Manifest, read_manifest
from varve.process_state import (
    import_without_gc,
    keep_environment,
    keep_log_levels,
    silence_datasets,
    silence_transformers,
)
from varve.storage.object_store import Storage

if TYPE_CHECKING:
    from varve.cluster.placement import Placement

# Code of readers, replicas and the canary; then of the stages.
_OF_WORKERS = Imports(
    ("varve.source.workarounds", "varve.workers.replica", "varve.verification.canary"), ("varve.engine.dataflow",)
)
_JOB_RUN = "varve.driver.job_run"
_BACKFILL = "varve.backfill.open_backfill"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run ended with."""

    manifest: Manifest
    finished_before: bool  # an earlier run had published the manifest


def embed(job: Job) -> Manifest:
    """Run a job until its output is verified and published, or resume it where an earlier run stopped.

    Progress and notes go to the logger "varve". Log levels, the garbage collector, warnings, signal handlers and
    environment variables of the process are afterwards as they were. Ray stays connected.

    Args:
        job: what to run.

    Returns:
        The manifest; that of the earlier run if the job is already finished.

    Raises:
        JobError: the job can't be run as it is.
        RunError: the run failed. Committed parts stay, and the same call resumes from them.
    """
    with ExitStack() as undo:
        # Ray Data's handles of the replicas are in reference cycles: until they are collected they hold CPUs.
        undo.callback(gc.collect)
        undo.enter_context(warnings.catch_warnings())  # libraries add filters when they are imported
        undo.callback(keep_log_levels("ray"))
        undo.callback(keep_environment())
        # Ray's C++ code writes a warning of each replica that may be restarted to stderr.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        return _run(job, undo, progress=None).manifest


def embed_in_own_process(job: Job) -> Outcome:
    """`embed` for a process that ends after it: nothing is restored, and progress is one line on stderr.

    Raises:
        JobError, RunError: as for `embed`.
    """
    return _run(job, ExitStack(), progress=sys.stderr)


def _run(job: Job, undo: ExitStack, *, progress: TextIO | None) -> Outcome:
    return (_run_to_table if job.output.table else _run_to_folder)(job, undo, progress)


def _run_to_table(job: Job, undo: ExitStack, progress: TextIO | None) -> Outcome:
    """Without Ray, and without opening a data file, if the table is in step with its source."""
    timer = LapTimer()
    check_local_folder(job.model, reads_declaration=job.reads_declaration)
    job_run = import_without_gc(_JOB_RUN)
    undo.callback(silence_transformers())
    undo.callback(silence_datasets())
    backfill = import_without_gc(_BACKFILL).open_backfill(job)
    timer.lap("imports")
    if backfill.is_in_step and (finished := read_manifest(Storage(backfill.job.output.path, patient=False))):
        return Outcome(finished, finished_before=True)

    def start() -> "Placement":
        placement, wait = _start(job, timer)
        wait()
        if progress is not None:
            gc.freeze()  # what was imported stays until the process ends
        return placement

    return Outcome(job_run.run_table_job(backfill, start, timer, progress), finished_before=False)


def _run_to_folder(job: Job, undo: ExitStack, progress: TextIO | None) -> Outcome:
    storage, timer = Storage(job.output.root, patient=False), LapTimer()
    finished = read_manifest(storage)
    if finished is None and not storage.is_local:  # a store that can't be written fails before Ray's start, not after
        storage = replace(storage, conditional=storage.check())
    if finished is None:
        check_local_folder(job.model, reads_declaration=job.reads_declaration)
    placement, wait = (None, None) if finished else _start(job, timer)
    job_run = import_without_gc(_JOB_RUN)
    if progress is not None:
        gc.freeze()  # what was imported stays until the process ends
    undo.callback(silence_transformers())
    undo.callback(silence_datasets())
    if finished is not None:
        job_run.check_same_job(job, storage)
        return Outcome(finished, finished_before=True)
    return Outcome(job_run.run_job(job, storage, placement, timer, progress, wait=wait), finished_before=False)


def _start(job: Job, timer: LapTimer) -> "tuple[Placement, Callable[[], None]]":
    """Start Ray, and import meanwhile what the run needs; returns the placement, and what waits for Ray's workers."""
    prepared = _prepare(job)
    with ThreadPoolExecutor(1) as background:
        connection = import_without_gc("varve.cluster.connection")
        imported = background.submit(import_without_gc, _JOB_RUN)
        wait = connection.begin_ray(job.compute, prepared)
        cluster, placement = import_without_gc("varve.cluster.placement").place_on_cluster(job.compute)
        import_without_gc("varve.driver.node_instructions").check_instructions(job.model, cluster, placement)
        timer.lap("ray")
        imported.result()
    timer.lap("imports")
    return placement, wait


def _prepare(job: Job) -> PreparedRay | None:
    """Let a fork server import the code of the workers while this process imports Ray; None if no Ray is started."""
    ray = sys.modules.get("ray")
    if os.environ.get("RAY_ADDRESS") or (ray and ray.is_initialized()):
        return None
    return PreparedRay.prepare(job.compute, _OF_WORKERS)
