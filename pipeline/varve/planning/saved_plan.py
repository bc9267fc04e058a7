"""Saves the plan of a job to `_varve/job.json` before any part is written, and loads it in later runs.

A later run therefore resumes with exactly the same settings. Knows nothing of Ray. Invariant: a run of a different job
is rejected, with the fields that differ.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from varve.config.job import Job
from varve.config.source import Source
from varve.encoder.checkpoint.inspection import Checkpoint, inspect_checkpoint
from varve.errors import JobError
from varve.output.manifest import JOB_NAME
from varve.output.part_file import part_name
from varve.planning.plan import Plan, Resolved, code_identity
from varve.planning.resolve import make_plan
from varve.preprocessing.computed_columns import find_computed
from varve.ranges import Range
from varve.source.dataset import Dataset, Shards
from varve.source.globs import find_matching_glob
from varve.source.open_dataset import open_dataset
from varve.storage.object_store import Storage

_MAX_SHOWN = 10  # files listed in an error message


def prepare(job: Job, storage: Storage, *, device: str) -> Plan:
    """Return the plan of a job: read from job.json if an earlier run wrote one to the output, else a new one."""
    stored = read_job(storage)
    if stored is not None:
        return load_plan(job, stored, storage.uri)
    _check_output_outside_source(job.source, storage)
    return make_plan(job, device=device)


def _check_output_outside_source(source: Source, storage: Storage) -> None:
    """Reject an output whose files would match the source's patterns."""
    written = [f"{storage.uri}/{name}" for name in (part_name(Range(0, 0, 1)), JOB_NAME)]
    if storage.is_local and (pattern := find_matching_glob(source, written)):
        msg = (
            f"output.path: files in {storage.uri} would match {pattern} of the source, so the next run would read them "
            "as source files. Choose another output.path, or source.data_files that do not match it"
        )
        raise JobError(msg)


def save_plan(plan: Plan, storage: Storage) -> None:
    """Write job.json, unless it exists. Among concurrent runs the first one determines the plan.

    Raises:
        JobError: the existing job.json is not of this plan.
    """
    if storage.create(JOB_NAME, json.dumps(plan.to_json(), indent=1).encode()):
        return
    stored = read_job(storage) or {}
    if stored.get("fingerprint") != plan.fingerprint:
        load_plan(plan.job, stored, storage.uri)
        msg = f"{storage.uri}: a concurrent run has just saved another plan for this job. Run the same command again"
        raise JobError(msg)


def read_job(storage: Storage) -> dict[str, Any] | None:
    """Read job.json of an output; None if it does not exist.

    Raises:
        JobError: this version of Varve cannot read it.
    """
    content = storage.read(JOB_NAME)
    if content is None:
        return None
    try:
        stored = json.loads(content)
        Resolved(**stored["resolved"])
        Shards(**stored["source"]["shards"])
    except (ValueError, KeyError, TypeError) as e:
        msg = f"{storage.uri}/{JOB_NAME} cannot be read by this version of Varve: {type(e).__name__} {e}"
        raise JobError(msg) from e
    return stored


def load_plan(job: Job, stored: Mapping[str, Any], uri: str) -> Plan:
    """Restore the plan of an earlier run.

    Args:
        job: the job of this run.
        stored: content of job.json.
        uri: of the output, for messages.

    Raises:
        JobError: the job, the code of its functions, the model's files or the source's files have changed.
    """
    earlier = Job.parse(stored["job"], where=f"{uri}/{JOB_NAME}")
    computed = find_computed(job.computed, job.folder)
    before = {**earlier.identity(), **stored.get("code", {}).get("identity", {})}
    after = {**job.identity(), **code_identity(computed)}
    _check_unchanged(_changes(before, after), uri)
    resolved = Resolved(**stored["resolved"])
    checkpoint = inspect_checkpoint(
        job.model.name, resolved.model_commit, trust_remote_code=job.model.trust_remote_code
    )
    dataset = _open_source(job.source, stored, uri)
    _check_unchanged(_changed_files(checkpoint, resolved), uri)
    return Plan(job, resolved, dataset, checkpoint, computed, stored["created_at"])


def _changed_files(checkpoint: Checkpoint, resolved: Resolved) -> list[str]:
    """The files of the model that have changed since the job was planned."""
    changed = {
        "the model's weights": checkpoint.weights_sha256 != resolved.weights_sha256,
        "the tokenizer": checkpoint.tokenizer_sha256 != resolved.tokenizer_sha256,
        "the model's config.json": resolved.config_sha256 not in {None, checkpoint.config_sha256},
    }
    return [name for name, has_changed in changed.items() if has_changed]


def load_source(storage: Storage) -> Dataset:
    """Open the source of an output as its run read it; neither the model nor the code of functions is needed.

    Raises:
        JobError: job.json does not exist, or the source's files have changed.
    """
    stored = read_job(storage)
    if stored is None:
        msg = f"{storage.uri}/{JOB_NAME} is gone, so the source of the run is not known"
        raise JobError(msg)
    job = Job.parse(stored["job"], where=f"{storage.uri}/{JOB_NAME}")
    return _open_source(job.source, stored, storage.uri)


def _open_source(source: Source, stored: Mapping[str, Any], uri: str) -> Dataset:
    resolved, saved = Resolved(**stored["resolved"]), stored["source"]
    shards = {key: value and tuple(value) for key, value in saved["shards"].items()}
    dataset = open_dataset(source, resolved.source_commit, Shards(**shards))
    _check_files(saved["files"], saved["versions"], dataset, uri)
    return replace(dataset, schema=pa.ipc.read_schema(pa.py_buffer(base64.b64decode(resolved.schema))))


def _check_files(names: Sequence[str], versions: Sequence[str] | None, dataset: Dataset, uri: str) -> None:
    """Reject a source whose files have changed since the job was planned, and list the changes."""
    before = dict(zip(names, versions or names, strict=True))
    after = dict(zip(dataset.names, dataset.versions or names, strict=False))
    changes = _changes(before, after)
    more = [f"and {len(changes) - _MAX_SHOWN} more files"] if len(changes) > _MAX_SHOWN else []
    _check_unchanged([f"source file {change}" for change in changes[:_MAX_SHOWN]] + more, uri)


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The fields with different values, as "key: old → new"."""
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return [f"{key}: {_shown(before, key)} → {_shown(after, key)}" for key in changed]


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "absent"


def _check_unchanged(changes: list[str], uri: str) -> None:
    if changes:
        listed = "".join(f"\n  {change}" for change in changes)
        msg = (
            f"output.path: {uri} belongs to another job. Changed:{listed}\n"
            "Use another output.path, or undo these changes"
        )
        raise JobError(msg)
