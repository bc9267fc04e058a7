"""Compares what job.json and the manifest record with what it derives from.

Reads no part and no source. What derives from nothing (times, seconds, stages, retries, the run's own path and
hardware) is proved by the hash of the manifest alone, see `verify`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

from varve.config.job import Job
from varve.encoder.feature_plan import Column
from varve.errors import JobError
from varve.output.manifest import Manifest
from varve.output.part_table import PartTable
from varve.planning.plan import Resolved, make_fingerprint
from varve.planning.saved_plan import saved_code_identity
from varve.source.dataset import source_identity
from varve.verification.check import Check

# Fields of the manifest that are sums over its parts.
_SUMS = [field.name for field in fields(Manifest) if isinstance(getattr(PartTable, field.name, None), property)]
_NOT_OF_PARTS = {"lost"}  # events of the run that published, not of a part


def check_job(stored: Mapping[str, Any], finished: Manifest) -> Check:
    """Compare job.json with itself (fingerprint, source, code) and with the manifest."""
    try:
        job = Job.reopen(stored["job"], where="job.json")
        published = Job.reopen(finished.job, where="manifest.json")
    except JobError as e:
        return Check("job", (str(e),))
    resolved, source = Resolved(**stored["resolved"]), stored["source"]
    code = saved_code_identity(stored)
    computed = {
        "job.json: fingerprint": (stored["fingerprint"], make_fingerprint(job, code, resolved)),
        "job.json: resolved.source_identity": (
            resolved.source_identity,
            source_identity(resolved.source_commit, resolved.num_shards, source["files"], source["versions"]),
        ),
        "job.json: code": (sorted(code), sorted(f"features.{name}.code" for name in job.computed)),
    }
    failures = [f"{name} is {got}, its content gives {want}" for name, (got, want) in computed.items() if got != want]
    pairs = {
        "fingerprint": (finished.fingerprint, stored["fingerprint"]),
        **_pairs("job", published.identity(), job.identity()),
        **_pairs("resolved", finished.resolved, stored["resolved"]),
    }
    failures += [f"{key} is {a} in manifest.json, {b} in job.json" for key, (a, b) in pairs.items() if a != b]
    return Check("job", tuple(failures))


def _pairs(prefix: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {f"{prefix}.{key}": (a.get(key, "absent"), b.get(key, "absent")) for key in {**a, **b}}


def check_totals(finished: Manifest, columns: Sequence[Column] | None) -> Check:
    """Compare the manifest's sums with its parts, and its record of the canary with the columns.

    Args:
        finished: the manifest.
        columns: the feature columns of the parts; None if they cannot be read.
    """
    failures = []
    for name in _SUMS:
        recorded, total = getattr(finished, name), getattr(finished.parts, name)
        if name == "counts":
            recorded = {event: count for event, count in recorded.items() if event not in _NOT_OF_PARTS}
        if recorded != total:
            failures.append(f"{name} is {recorded}, the sum over its parts is {total}")
    repeated = [part for part, count in Counter(part.range for part in finished.parts).items() if count > 1]
    failures += [f"shard {r.shard}, rows [{r.start}, {r.stop}): the part is listed twice" for r in repeated]
    failures += [f"{name} is not a time" for name in ("started_at", "finished_at") if not _is_time(finished, name)]
    return Check("totals", tuple(failures + _canary_failures(finished, columns)))


def _is_time(finished: Manifest, name: str) -> bool:
    try:
        datetime.fromisoformat(getattr(finished, name))
    except ValueError:
        return False
    return True


def _canary_failures(finished: Manifest, columns: Sequence[Column] | None) -> list[str]:
    """A manifest is published only after the canary of its run passed for every column."""
    record = finished.canary
    rows, features, computed = record.get("rows"), record.get("features"), record.get("computed", {})
    if record.get("passed") is not True or record.get("failed") or not isinstance(rows, int):
        return ["canary: no comparison that passed is recorded"]
    if not rows and any(part.longest for part in finished.parts):
        return ["canary: no row was compared, although the parts have rows with features"]
    if not isinstance(features, dict) or (columns is not None and set(features) != {c.name for c in columns}):
        return ["canary: its features are not the feature columns of the parts"]
    if not isinstance(computed, dict):
        return ["canary: its functions are not recorded"]
    measured = {**features, **computed}
    return [f"canary: {name} exceeds its tolerance" for name, figures in measured.items() if not _is_within(figures)]


def _is_within(figures: Any) -> bool:
    try:
        return bool(figures["relative"] <= figures["tolerance"])
    except (KeyError, TypeError):
        return False
