"""Saves the plan of a job to `_varve/job.json` before any part is written, and loads it in later runs.

A later run therefore resumes with exactly the same settings. Knows nothing of Ray. Invariant: a run of a different job
is rejected, with the fields that differ.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from varve.config.job import Job
from varve.config.source import Source
from varve.encoder.checkpoint.checkpoint import Checkpoint
from varve.encoder.checkpoint.defaults import make_feature_plan
from varve.errors import JobError
from varve.output.manifest import JOB_NAME
from varve.output.part_file import part_name
from varve.output.vocabulary import write_vocabulary
from varve.planning.further_set import plan_further_set
from varve.planning.model_identity import hash_heads, inspect_model
from varve.planning.plan import Plan, Resolved, code_identity
from varve.planning.resolve import make_plan
from varve.planning.same_job import respell
from varve.planning.saved_job import read_job
from varve.preprocessing.computed_columns import ComputedColumn, find_computed
from varve.ranges import Range
from varve.source.dataset import Dataset, Shards
from varve.source.globs import find_matching_glob
from varve.source.open_dataset import open_dataset
from varve.source.row_selection import RowSelection
from varve.source.table_source import open_table_source
from varve.storage.object_store import Storage

_MAX_SHOWN = 10  # files listed in an error message


@dataclass(frozen=True, slots=True)
class CodePermission:
    """The code that may run when an output is opened: given by the user, never by the output.

    Attributes:
        folder: where the functions of the job are searched; None: they do not run.
        remote_code: Python code that comes with the checkpoint may run.
    """

    folder: str | None = None
    remote_code: bool = False

    def restrict(self, job: Job) -> Job:
        """The job with the permitted code only; what the job itself says about code is ignored."""
        features = job.features if self.folder is not None else job.pooled
        model = job.model.model_copy(update={"trust_remote_code": self.remote_code})
        return job.model_copy(update={"features": features, "model": model}).in_folder(self.folder or ".")


def prepare(job: Job, storage: Storage, *, device: str) -> Plan:
    """Return the plan of a job: read from job.json if an earlier run wrote one to the output, else a new one."""
    stored = read_job(storage)
    if stored is not None:
        return load_plan(job, stored, storage.uri)
    _check_output_outside_source(job.source, storage)
    if job.output.set:
        return plan_further_set(job, device=device)
    selection = RowSelection.load(storage) if job.source.table else None
    return make_plan(job, device=device, selection=selection)


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
    """Write job.json and the vocabulary of sparse columns, unless they exist.

    Among concurrent runs the first one determines the plan.

    Raises:
        JobError: the existing job.json is not of this plan.
        RunError: the existing vocabulary is another one.
    """
    if not storage.create(JOB_NAME, json.dumps(plan.to_json(), indent=1).encode()):
        _check_saved(plan, storage)
    if plan.vocabulary is not None:
        write_vocabulary(storage, plan.vocabulary)


def _check_saved(plan: Plan, storage: Storage) -> None:
    stored = read_job(storage) or {}
    if stored.get("fingerprint") != plan.fingerprint:
        load_plan(plan.job, stored, storage.uri)
        msg = f"{storage.uri}: a concurrent run has just saved another plan for this job. Run the same command again"
        raise JobError(msg)


def load_plan(job: Job, stored: Mapping[str, Any], uri: str) -> Plan:
    """Restore the plan of an earlier run for the user's own job, whose code may run.

    Args:
        job: the job of this run.
        stored: content of job.json.
        uri: of the output, for messages.

    Raises:
        JobError: the job, the code of its functions, the model's files or the source's files have changed.
    """
    earlier = Job.reopen(stored["job"], where=f"{uri}/{JOB_NAME}")
    job = respell(job, earlier, Resolved(**stored["resolved"]))
    computed = find_computed(job.computed, job.folder)
    before = {**earlier.identity(), **saved_code_identity(stored)}
    after = {**job.identity(), **code_identity(computed)}
    _check_unchanged(_changes(before, after), uri)
    return _restore(job, computed, stored, uri)


def reopen_plan(stored: Mapping[str, Any], uri: str, permission: CodePermission) -> Plan:
    """Restore the plan of an output from the output alone; runs only code that the user permits.

    Returns:
        The plan of the stored job; without its functions if these are not permitted.

    Raises:
        JobError: the code of the functions, the model's files or the source's files have changed, or cannot be opened.
    """
    job = permission.restrict(Job.reopen(stored["job"], where=f"{uri}/{JOB_NAME}"))
    computed = find_computed(job.computed, job.folder)
    before = saved_code_identity(stored) if computed else {}
    _check_unchanged(_changes(before, code_identity(computed)), uri)
    return _restore(job, computed, stored, uri)


def saved_code_identity(stored: Mapping[str, Any]) -> dict[str, str]:
    """The hashes of the functions' code, as the run recorded them."""
    return stored.get("code", {}).get("identity", {})


def _restore(job: Job, computed: tuple[ComputedColumn, ...], stored: Mapping[str, Any], uri: str) -> Plan:
    if not job.pooled:  # a plan holds the features that an absent section means
        msg = f"{uri}/{JOB_NAME}: job.features is empty: expected the features of the run"
        raise JobError(msg)
    resolved = Resolved(**stored["resolved"])
    checkpoint = inspect_model(job.model, resolved.model_commit)
    dataset = reopen_source(stored, uri, job.source)
    _check_unchanged(_changed_files(checkpoint, resolved) or _changed_heads(job, checkpoint, resolved), uri)
    return Plan(job, resolved, dataset, checkpoint, computed, stored["created_at"])


def _changed_files(checkpoint: Checkpoint, resolved: Resolved) -> list[str]:
    """The files of the model that have changed since the job was planned."""
    changed = {
        "the model's weights": checkpoint.weights_sha256 != resolved.weights_sha256,
        "the tokenizer": checkpoint.tokenizer_sha256 != resolved.tokenizer_sha256,
        "the model's config.json": resolved.config_sha256 not in {None, checkpoint.config_sha256},
    }
    return [name for name, has_changed in changed.items() if has_changed]


def _changed_heads(job: Job, checkpoint: Checkpoint, resolved: Resolved) -> list[str]:
    """The files of heads and of the declaration that have changed since the job was planned."""
    features = make_feature_plan(job.model, job.pooled, checkpoint, job.output.dtype)
    before, after = resolved.heads_sha256 or {}, hash_heads(job.model, features, checkpoint) or {}
    return [f"the model's {file}" for file in {**before, **after} if before.get(file) != after.get(file)]


def load_source(storage: Storage) -> Dataset:
    """Open the source of an output as its run read it; neither the model nor the code of functions is needed.

    Raises:
        JobError: job.json does not exist, or the source's files have changed.
    """
    stored = read_job(storage)
    if stored is None:
        msg = f"{storage.uri}/{JOB_NAME} is gone, so the source of the run is not known"
        raise JobError(msg)
    return reopen_source(stored, storage.uri)


def reopen_source(stored: Mapping[str, Any], uri: str, source: Source | None = None) -> Dataset:
    """Open the source of an output as its run read it.

    Args:
        stored: content of job.json.
        uri: of the output, for messages.
        source: of the user's own job; by default the one in job.json.

    Raises:
        JobError: the source cannot be opened, or its files have changed.
    """
    source = source or Job.reopen(stored["job"], where=f"{uri}/{JOB_NAME}").source
    resolved, saved = Resolved(**stored["resolved"]), stored["source"]
    if source.table:
        return open_table_source(source, resolved.source_commit, RowSelection.load(Storage(uri)))
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
