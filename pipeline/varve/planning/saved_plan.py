"""What `_varve/job.json` holds: the plan of a job, written before any part and taken up again by every later run.

So a later run goes on with the very same numbers. Knows nothing of Ray. Invariant: a run of another job is refused,
with the fields that differ.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from varve.config.job import Job
from varve.config.source import Source
from varve.encoder.checkpoint.inspection import inspect_checkpoint
from varve.errors import JobError
from varve.output.manifest import JOB_NAME
from varve.output.part_file import part_name
from varve.planning.plan import Plan, Resolved, code_identity, make_plan
from varve.preprocessing.computed_columns import find_computed
from varve.ranges import Range
from varve.source.dataset import Dataset, Shards
from varve.source.globs import finding
from varve.source.open_dataset import open_dataset
from varve.storage.object_store import Storage

# Changes that a refusal lists.
_SHOWN = 10


def prepare(job: Job, storage: Storage, *, device: str) -> Plan:
    """Return the plan of a job: read from job.json if an earlier run wrote one to the output, else a new one."""
    stored = read_job(storage)
    if stored is not None:
        return recall_plan(job, stored, storage.uri)
    _refuse_output_in_source(job.source, storage)
    return make_plan(job, device=device)


def _refuse_output_in_source(source: Source, storage: Storage) -> None:
    """Refuse an output whose files the next run would take for the source's."""
    written = [f"{storage.uri}/{name}" for name in (part_name(Range(0, 0, 1)), JOB_NAME)]
    if storage.is_local and (pattern := finding(source, written)):
        msg = (
            f"output.path: {storage.uri} lies where the source looks for its files ({pattern}): the next run would "
            "read those of the output too. Choose a folder outside, or source.data_files that don't match it"
        )
        raise JobError(msg)


def record(plan: Plan, storage: Storage) -> None:
    """Write job.json before anything else; whoever was first decides.

    Raises:
        JobError: another job has written there.
    """
    if storage.create(JOB_NAME, json.dumps(plan.to_json(), indent=1).encode()):
        return
    stored = read_job(storage) or {}
    if stored.get("fingerprint") != plan.fingerprint:
        recall_plan(plan.job, stored, storage.uri)
        msg = f"{storage.uri}: another run settled this job differently a moment ago. Run the same command again"
        raise JobError(msg)


def read_job(storage: Storage) -> dict[str, Any] | None:
    """The job.json of an output; None if there is none.

    Raises:
        JobError: it is not Varve's.
    """
    content = storage.read(JOB_NAME)
    if content is None:
        return None
    try:
        stored = json.loads(content)
        Resolved(**stored["resolved"])
        Shards(**stored["source"]["shards"])
    except (ValueError, KeyError, TypeError) as e:
        msg = f"{storage.uri}/{JOB_NAME} can't be read as a job of this version of Varve: {type(e).__name__} {e}"
        raise JobError(msg) from e
    return stored


def recall_plan(job: Job, stored: Mapping[str, Any], where: str) -> Plan:
    """The plan of an earlier run, checked against the job of this one.

    Args:
        job: this run's.
        stored: the content of job.json.
        where: the output's address, for messages.

    Raises:
        JobError: the job, its functions' code, the model's files or the source's have changed.
    """
    earlier = Job.parse(stored["job"], where=f"{where}/{JOB_NAME}")
    computed = find_computed(job.computed, job.folder)
    _refuse_changes(
        _changes(
            {**earlier.identity(), **stored.get("code", {}).get("identity", {})},
            {**job.identity(), **code_identity(computed)},
        ),
        where,
    )
    resolved = Resolved(**stored["resolved"])
    checkpoint = inspect_checkpoint(
        job.model.name, resolved.model_commit, trust_remote_code=job.model.trust_remote_code
    )
    dataset = _open_source(job.source, stored, where)
    now = {
        "the model's weights": checkpoint.weights_sha256,
        "the tokenizer": checkpoint.tokenizer_sha256,
        "the model's config.json": checkpoint.config_sha256,
    }
    then = {
        "the model's weights": resolved.weights_sha256,
        "the tokenizer": resolved.tokenizer_sha256,
        "the model's config.json": resolved.config_sha256 or checkpoint.config_sha256,
    }
    _refuse_changes([what for what in now if now[what] != then[what]], where)
    return Plan(job, resolved, dataset, checkpoint, computed, stored["created_at"])


def recall_source(storage: Storage) -> Dataset:
    """The source of an output as its run has read it, whatever has become of the model and of functions' code.

    Raises:
        JobError: there is no job.json, or the source's files have changed.
    """
    stored = read_job(storage)
    if stored is None:
        msg = f"{storage.uri}/{JOB_NAME} is gone: nothing else says what the run has read"
        raise JobError(msg)
    job = Job.parse(stored["job"], where=f"{storage.uri}/{JOB_NAME}")
    return _open_source(job.source, stored, storage.uri)


def _open_source(source: Source, stored: Mapping[str, Any], where: str) -> Dataset:
    resolved, found = Resolved(**stored["resolved"]), stored["source"]
    shards = {key: value and tuple(value) for key, value in found["shards"].items()}
    dataset = open_dataset(source, resolved.source_commit, Shards(**shards))
    _refuse_files(found["files"], found["versions"], dataset, where)
    return replace(dataset, schema=pa.ipc.read_schema(pa.py_buffer(base64.b64decode(resolved.schema))))


def _refuse_files(names: Sequence[str], versions: Sequence[str] | None, dataset: Dataset, where: str) -> None:
    """Refuse a source whose files are others than those that the job was planned for, and name them."""
    then = dict(zip(names, versions or names, strict=True))
    now = dict(zip(dataset.names, dataset.versions or names, strict=False))
    changes = _changes(then, now)
    more = [f"and {len(changes) - _SHOWN} more files"] if len(changes) > _SHOWN else []
    _refuse_changes([f"source file {change}" for change in changes[:_SHOWN]] + more, where)


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    fields = [key for key in (*then, *(key for key in now if key not in then)) if then.get(key) != now.get(key)]
    return [f"{key}: {_shown(then, key)} → {_shown(now, key)}" for key in fields]


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "absent"


def _refuse_changes(changes: list[str], where: str) -> None:
    if changes:
        listed = "".join(f"\n  {change}" for change in changes)
        msg = (
            f"output.path: {where} belongs to another job. Changed:{listed}\nUse another output.path, or restore these"
        )
        raise JobError(msg)
