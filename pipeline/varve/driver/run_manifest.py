"""The manifest of a run, from its plan, its parts and its counters."""

from datetime import UTC, datetime
from typing import Any

from varve.engine.dataflow import DataflowResult
from varve.monitoring import bottleneck
from varve.output.manifest import Manifest
from varve.output.part_table import PartTable
from varve.planning.plan import Plan, versions
from varve.storage.object_store import Storage
from varve.storage.retry import retries


def make_manifest(
    plan: Plan,
    storage: Storage,
    parts: PartTable,
    started_at: str,
    laps: dict[str, float],
    result: DataflowResult | None,
    canary: dict[str, Any],
    table: dict[str, Any],
) -> Manifest:
    """Put together the manifest.

    Args:
        plan: of the job.
        storage: the output.
        parts: the records of all parts.
        started_at: ISO 8601.
        laps: phase → seconds.
        result: of the dataflow of this run; None if no part was missing.
        canary: what the canary found.
        table: the commit of a lake table; empty without one.
    """
    counters = result.counters if result else None
    laps = laps | {"first_replica": (counters and counters.ready_s) or 0.0}
    laps |= {"first_block": (counters and counters.first_s) or 0.0}
    return Manifest(
        path=storage.uri,
        fingerprint=plan.fingerprint,
        started_at=started_at,
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        num_rows=parts.num_rows,
        num_tokens=parts.num_tokens,
        num_errors=parts.num_errors,
        num_null_texts=parts.num_null_texts,
        error_reasons=parts.error_reasons,
        num_truncated=parts.num_truncated,
        counts=parts.counts | {"lost": counters.lost if counters else 0},
        storage={
            "create_if_absent": storage.conditional,
            "retries": retries() + (counters.retries if counters else 0),
        },
        file_bytes=parts.file_bytes,
        seconds={name: round(value, 3) for name, value in laps.items()},
        stages=_measure(result) if result else {},
        encoder=counters.encoder if counters else {},
        descriptions=plan.descriptions,
        canary=canary,
        versions=versions(),
        job=plan.job.model_dump(mode="json"),
        resolved=plan.to_json()["resolved"],
        table=table,
        parts=parts,
    )


def _measure(result: DataflowResult) -> dict[str, Any]:
    """How busy the stages of this run were; the seconds of earlier runs of the job are not known."""
    counters, placement = result.counters, result.placement
    measured = bottleneck.measure(
        counters.seconds,
        counters.ready_s or 0.0,
        counters.last_s or 0.0,
        lanes=placement.lanes,
        replicas=placement.replicas,
        before_s=counters.before_s,
    )
    return bottleneck.to_json(measured)
