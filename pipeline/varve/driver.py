"""A run from the job to the published manifest.

Knows Ray only through run/. The order is the guarantee: job.json before any part, parts in any order by anyone, the
proof of coverage and the canary before the manifest, the manifest last.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from importlib import import_module
from threading import Thread
from typing import TYPE_CHECKING, Any

from varve.cluster.connection import start_ray
from varve.cluster.placement import Placement, place_on_cluster
from varve.config.job import Job
from varve.engine.dataflow import DataflowResult, run_dataflow
from varve.errors import JobError, RunError
from varve.import_gc import collected_afterwards, uncollected
from varve.library_logs import quiet_datasets, quiet_transformers
from varve.monitoring import bottleneck
from varve.output import manifest
from varve.output.manifest import Manifest
from varve.output.part_file import Part
from varve.output.part_table import PartTable
from varve.ranges import Range
from varve.storage.object_store import Storage
from varve.storage.retry import retries

if TYPE_CHECKING:
    from varve.planning.plan import Plan

OnStart = Callable[["Plan", int, Storage], None]
OnNote = Callable[[str], None]


def embed(
    job: Job,
    *,
    on_start: OnStart = lambda _plan, _rows, _storage: None,
    on_note: OnNote = lambda _note: None,
) -> Manifest:
    """Run a job to its proved, published output, or go on with it where an earlier run stopped.

    Args:
        job: what to do.
        on_start: called before the first row is read, with the plan, the rows that are committed already, and the
            storage as it was found.
        on_note: called with what a user should know of a run that goes well.

    Returns:
        The manifest; that of the earlier run where the job is finished already.

    Raises:
        JobError: the job can't be run as it is.
        RunError: the run failed; what was committed stays.
    """
    with collected_afterwards():
        return run(job, on_start, on_note)


def run(job: Job, on_start: OnStart, on_note: OnNote) -> Manifest:
    """`embed` in a process that ends with it: to collect what a run has left there takes half a second, for nobody."""
    storage = Storage(job.output.path, patient=False)
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    clock = _Clock()
    finished = manifest.read_manifest(storage)
    if finished is not None:
        return _finished(job, finished)
    if not storage.is_local:  # one that may not be written says so before half a minute has gone by
        storage = replace(storage, conditional=storage.check())
    placement = _start(job, clock)
    from varve.planning.saved_plan import prepare, read_job, record  # noqa: PLC0415 (see _start)

    quiet_transformers()
    quiet_datasets()
    plan = prepare(job, device=placement.device)
    resolved = plan.resolved
    splits = manifest.splits(resolved.num_shards, resolved.rows_per_part, plan.dataset.shard_rows)
    found = manifest.committed(storage, splits)
    if found and read_job(storage) is None:
        msg = f"output.path: {storage.uri} holds parts, but not the job that wrote them. Choose another output.path"
        raise JobError(msg)
    lacking = manifest.missing(found, resolved.num_shards, resolved.rows_per_part, storage.uri)
    done_rows = sum(part.num_rows for parts in found.values() for part in parts)
    record(plan, storage)
    if storage.is_local:  # a folder is not made for a job that turns out to be wrong
        storage = replace(storage, conditional=storage.check())
    storage = replace(storage, patient=True)
    on_start(plan, done_rows, storage)
    for note in plan.notes:
        on_note(note)
    clock.lap("plan")
    # Beside the start of replicas, which it would hold up if it came before.
    Thread(target=_import, args=("varve.verification.canary",), daemon=True).start()
    ran = run_dataflow(plan, storage, lacking, done_rows, placement) if lacking else None
    clock.lap("graph")
    found = manifest.committed(storage, splits)
    if ran and ran.ended:
        msg = f"{storage.uri}: {ran.ended}. {_remains(found, plan)}; the same command goes on from there"
        raise RunError(msg)
    gaps = manifest.coverage_gaps(found, resolved.num_shards, resolved.rows_per_part, plan.dataset.shard_rows)
    if gaps:
        raise RunError(f"{storage.uri}: the parts do not cover the source exactly once:\n  " + "\n  ".join(gaps[:20]))
    records = manifest.read_parts(storage, found, ran.parts if ran else ())
    _check_origin(records, plan, storage)
    _check_errors(records.num_errors, job.output.max_errors, storage)
    from varve.verification import canary  # noqa: PLC0415 (see above)

    checked = canary.compare(plan, storage, records)
    if not checked["passed"]:
        raise RunError(f"{storage.uri}: not published:\n  " + "\n  ".join(checked["failed"]))
    clock.lap("check")
    made = _make_manifest(plan, storage, records, started_at, clock.laps, ran, checked)
    published, is_ours = manifest.publish(storage, made)
    if not is_ours:
        on_note("another run of this job published its manifest a moment before: the output is whole, and that is kept")
    return published


def _finished(job: Job, finished: Manifest) -> Manifest:
    """The manifest of an earlier run, once it is sure that it was of this job."""
    from varve.planning.saved_plan import prepare  # noqa: PLC0415 (see _start)

    quiet_transformers()
    quiet_datasets()
    prepare(job, device="cpu")  # recalled from the output: the device decides nothing any more
    return finished


class _Clock:
    """The seconds between laps."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now


def _start(job: Job, clock: _Clock) -> Placement:
    """Start Ray, which mostly waits, while torch and transformers are imported, which mostly computes."""
    with ThreadPoolExecutor(1) as imports:
        imported = imports.submit(_import, "varve.planning.saved_plan")
        start_ray(job.compute)
        _, placement = place_on_cluster(job.compute)
        clock.lap("ray")
        imported.result()
    clock.lap("imports")
    return placement


def _import(name: str) -> None:
    """Import a module for its users, who come later."""
    with uncollected():
        import_module(name)


def _remains(found: Mapping[int, Mapping[Range, int]], plan: "Plan") -> str:
    """How much of the source is committed, in words."""
    done = sum(part.num_rows for parts in found.values() for part in parts)
    rows = plan.dataset.shard_rows
    parts = sum(map(len, found.values()))
    return f"{done:,}{f' of {sum(rows):,}' if rows else ''} rows are committed, in {parts:,} part(s)"


def _check_origin(parts: Iterable[Part], plan: "Plan", storage: Storage) -> None:
    """Every part must be of this job: a name alone says only which rows it holds."""
    foreign = [part.name for part in parts if part.fingerprint != plan.fingerprint]
    if foreign:
        msg = f"{storage.uri}: {len(foreign)} part(s) are of another job: {foreign[0]}. Move them away and run again"
        raise RunError(msg)


def _check_errors(errors: int, limit: int | None, storage: Storage) -> None:
    """Hold the bound over all runs of the job; replicas hold it over their own."""
    if limit is not None and errors > limit:
        msg = (
            f"{storage.uri}: not published: {errors} rows ended with an error, more than output.max_errors: {limit}. "
            "Their reasons stand in the error column. Raise max_errors to publish"
        )
        raise RunError(msg)


def _make_manifest(
    plan: "Plan",
    storage: Storage,
    parts: PartTable,
    started_at: str,
    laps: dict[str, float],
    ran: DataflowResult | None,
    checked: dict[str, Any],
) -> Manifest:
    from varve.planning.plan import versions  # noqa: PLC0415 (see _start)

    last = ran.last if ran else None
    seconds = {**laps, "first_replica": (last and last.ready_s) or 0.0, "first_block": (last and last.first_s) or 0.0}
    return Manifest(
        path=storage.uri,
        fingerprint=plan.fingerprint,
        started_at=started_at,
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        num_rows=parts.num_rows,
        num_tokens=parts.num_tokens,
        num_errors=parts.num_errors,
        num_truncated=parts.num_truncated,
        counts=parts.counts | {"lost": last.lost if last else 0},
        storage={
            "create_if_absent": storage.conditional,
            "retries": retries() + (last.retries if last else 0),
        },
        file_bytes=parts.file_bytes,
        seconds={name: round(value, 3) for name, value in seconds.items()},
        stages=_measure(ran) if ran else {},
        encoder=last.encoder if last else {},
        canary=checked,
        versions=versions(),
        job=plan.job.model_dump(mode="json"),
        resolved=plan.to_json()["resolved"],
        parts=parts,
    )


def _measure(ran: DataflowResult) -> dict[str, Any]:
    """How busy the stages of this run were; earlier runs of the job took their own time."""
    last, placement = ran.last, ran.placement
    measured = bottleneck.measure(
        last.seconds,
        last.ready_s or 0.0,
        last.last_s or 0.0,
        lanes=placement.lanes,
        tokenizers=placement.tokenizers or placement.replicas,
        before_s=last.before_s,
    )
    return bottleneck.to_json(measured)
