"""A run from the job to the published manifest.

Knows Ray only through run.py. The order is the guarantee: job.json before any part, parts in any order by anyone, the
proof of coverage and the canary before the manifest, the manifest last.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pipeline import canary, manifest
from pipeline.errors import JobError, RunError
from pipeline.manifest import Manifest
from pipeline.plan import Plan, prepare, read_job, record, versions
from pipeline.progress import Snapshot
from pipeline.quiet import quiet_libraries
from pipeline.run import local_device, run_graph
from pipeline.sink import Part
from pipeline.spec import Job
from pipeline.storage import Storage

OnStart = Callable[[Plan, int], None]


def embed(job: Job, *, on_start: OnStart = lambda _plan, _rows: None) -> Manifest:
    """Run a job to its proved, published output, or go on with it where an earlier run stopped.

    Args:
        job: what to do.
        on_start: called with the plan and the rows that are committed already, before the first is read.

    Returns:
        The manifest; that of the earlier run where the job is finished already.

    Raises:
        JobError: the job can't be run as it is.
        RunError: the run failed; what was committed stays.
    """
    storage = Storage(job.output.path)
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    clock = time.perf_counter()
    quiet_libraries()
    plan = prepare(job, device=local_device())
    if (finished := manifest.read_manifest(storage)) is not None:
        return finished
    resolved = plan.resolved
    found = manifest.committed(storage)
    if found and read_job(storage) is None:
        msg = f"output.path: {storage.uri} holds parts, but not the job that wrote them. Choose another output.path"
        raise JobError(msg)
    lacking = manifest.missing(found, resolved.num_shards, resolved.rows_per_part, storage.uri)
    done_rows = sum(part.num_rows for parts in found.values() for part in parts)
    on_start(plan, done_rows)
    record(plan, storage)
    planned_s = time.perf_counter() - clock
    parts, last = run_graph(plan, storage, lacking, done_rows) if lacking else ([], Snapshot())
    computed_s = time.perf_counter() - clock - planned_s
    found = manifest.committed(storage)
    gaps = manifest.coverage_gaps(found, resolved.num_shards, resolved.rows_per_part, plan.dataset.shard_rows)
    if gaps:
        raise RunError(f"{storage.uri}: the parts do not cover the source exactly once:\n  " + "\n  ".join(gaps[:20]))
    records = manifest.read_parts(storage, found, parts)
    _check_origin(records, plan, storage)
    _check_errors(records, job.output.max_errors, storage)
    checked = canary.compare(plan, storage, records)
    if not checked["passed"]:
        raise RunError(f"{storage.uri}: not published:\n  " + "\n  ".join(checked["failed"]))
    wall = {"plan": planned_s, "graph": computed_s, "check": time.perf_counter() - clock - planned_s - computed_s}
    return manifest.publish(storage, _make_manifest(plan, storage, records, started_at, wall, last.encoder, checked))


def _check_origin(parts: list[Part], plan: Plan, storage: Storage) -> None:
    """Every part must be of this job: a name alone says only which rows it holds."""
    foreign = [part.name for part in parts if part.fingerprint != plan.fingerprint]
    if foreign:
        msg = f"{storage.uri}: {len(foreign)} part(s) are of another job: {foreign[0]}. Move them away and run again"
        raise RunError(msg)


def _check_errors(parts: list[Part], limit: int | None, storage: Storage) -> None:
    """Hold the bound over all runs of the job; replicas hold it over their own."""
    errors = sum(part.num_errors for part in parts)
    if limit is not None and errors > limit:
        msg = (
            f"{storage.uri}: not published: {errors} rows ended with an error, more than output.max_errors: {limit}. "
            "Their reasons stand in the error column. Raise max_errors to publish"
        )
        raise RunError(msg)


def _make_manifest(
    plan: Plan,
    storage: Storage,
    parts: list[Part],
    started_at: str,
    wall: dict[str, float],
    encoder: dict[str, Any],
    checked: dict[str, Any],
) -> Manifest:
    stages = {
        name: sum(part.seconds.get(name, 0.0) for part in parts) for name in ("read", "tokenize", "encode", "write")
    }
    return Manifest(
        path=storage.uri,
        fingerprint=plan.fingerprint,
        started_at=started_at,
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        num_rows=sum(part.range.num_rows for part in parts),
        num_tokens=sum(part.num_tokens for part in parts),
        num_errors=sum(part.num_errors for part in parts),
        num_truncated=sum(part.num_truncated for part in parts),
        file_bytes=sum(part.file_bytes for part in parts),
        seconds={name: round(value, 3) for name, value in {**stages, **wall}.items()},
        encoder=encoder,
        canary=checked,
        versions=versions(),
        job=plan.job.model_dump(mode="json"),
        resolved=plan.to_json()["resolved"],
        parts=tuple(parts),
    )
