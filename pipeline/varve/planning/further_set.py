"""Plans a further feature set of an output: it has the rows and the grid of parts of the first set.

Knows nothing of Ray. Invariant: nothing of the first set is changed.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

from varve.config.job import Job
from varve.errors import JobError
from varve.output.feature_sets import clashes, list_sets, made_columns, set_path
from varve.output.feature_sets import open as open_output
from varve.output.run_output import Output
from varve.planning.plan import Plan
from varve.planning.resolve import make_plan
from varve.planning.saved_job import read_job
from varve.storage.object_store import Storage

_MAX_SHOWN = 5  # changes listed in a message


def plan_further_set(job: Job, *, device: str) -> Plan:
    """Plan a job with `output.set`, for which no plan is saved yet.

    Raises:
        JobError: there is no finished first set, it has other rows or other parts, or a column of the same name.
    """
    path, name = job.output.path, job.output.set
    try:
        output = open_output(path)
    except JobError as e:
        msg = (
            f"output.set: {name} is a further feature set, which needs a finished first one in output.path: {e}. "
            "Run the job of the first set to its end: it has no output.set"
        )
        raise JobError(msg) from e
    rows_per_part = output.manifest.resolved["rows_per_part"]
    if job.output.rows_per_part not in {"auto", rows_per_part}:
        msg = (
            f"output.rows_per_part: {job.output.rows_per_part} is not allowed with output.set: the parts of the first "
            f"feature set in {output.path} have {rows_per_part} rows. Set auto, which takes this number"
        )
        raise JobError(msg)
    plan = make_plan(_with_parts_of(job, rows_per_part), device=device)
    plan = replace(plan, job=_with_parts_of(plan.job, job.output.rows_per_part))  # `auto` stays in job.json
    _check_rows(plan, output)
    _check_columns(plan, output)
    return plan


def _with_parts_of(job: Job, rows: int | Literal["auto"]) -> Job:
    return job.model_copy(update={"output": job.output.model_copy(update={"rows_per_part": rows})})


def _check_rows(plan: Plan, output: Output) -> None:
    """Check that the job reads the rows of the first set, in the same shards."""
    stored = read_job(output.storage)
    if stored is None:
        msg = f"output.set: job.json of {output.path} is gone, so its rows are not known. Choose another output.path"
        raise JobError(msg)
    before, after = _describe_rows(stored), _describe_rows(json.loads(json.dumps(plan.to_json())))
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    if not changed:
        return
    listed = "".join(f"\n  {key}: {before.get(key)} → {after.get(key)}" for key in changed[:_MAX_SHOWN])
    more = f"\n  and {len(changed) - _MAX_SHOWN} more" if len(changed) > _MAX_SHOWN else ""
    msg = (
        f"output.set: this job does not read the rows of the first feature set in {output.path}. Changed:{listed}{more}"
        "\nUse the source of the first set, or another output.path without output.set"
    )
    raise JobError(msg)


def _describe_rows(stored: dict[str, Any]) -> dict[str, Any]:
    """What decides the rows of an output and their numbers, from the content of job.json."""
    source, resolved = stored["source"], stored["resolved"]
    files = zip(source["files"], source["versions"] or source["files"], strict=True)
    return {
        **{f"source file {file}": version for file, version in files},
        "source.options": stored["job"]["source"].get("options", {}),
        "commit of the source": resolved["source_commit"],
        "number of shards": resolved["num_shards"],
        "files of the shards": source["shards"]["files"],
        "rows of the shards": source["shards"]["rows"],
    }


def _check_columns(plan: Plan, output: Output) -> None:
    """Check that no column of the plan has the name of another column of a set, finished or not."""
    for name in clashes(output.schema, plan.schema):
        raise JobError(_taken(name, output.led_by(name).storage.uri))
    names = made_columns(plan.schema) | (plan.job.features or {}).keys()
    for path, features in _unfinished(plan.job, output):
        for name in sorted(features & names):
            raise JobError(_taken(name, path))


def _taken(name: str, path: str) -> str:
    return (
        f"output.set: the feature set in {path} has a column {name!r} already, and each column is in one set only. "
        "Rename the feature, or drop the column from source.keep"
    )


def _unfinished(job: Job, output: Output) -> Iterator[tuple[str, set[str]]]:
    """(path, names of the features) of each other set that has begun."""
    for name in list_sets(output.storage):
        storage = Storage(set_path(output.path, name), patient=False)
        if name != job.output.set and (stored := read_job(storage)) is not None:
            yield storage.uri, {*(stored["job"].get("features") or {})}
