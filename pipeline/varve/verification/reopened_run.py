"""Opens again what the canary needs of a finished run: its source, its model and its functions.

Invariant: code runs only if the user permits it. What job.json says about code gives no permission.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from varve.config.job import Job
from varve.config.source import Source
from varve.errors import VarveError
from varve.planning.plan import Plan
from varve.planning.saved_plan import CodePermission, reopen_plan, reopen_source
from varve.source.dataset import Dataset


@dataclass(frozen=True, slots=True)
class ReopenedRun:
    """What could be opened.

    Attributes:
        dataset: the source; None if it cannot be opened or has changed.
        plan: with the model and the permitted functions; None if these cannot be opened or are not permitted.
        source: section of the job.
        failures: why something cannot be opened.
        skipped: what the user does not permit to run, and how to permit it.
    """

    dataset: Dataset | None
    plan: Plan | None
    source: Source | None
    failures: tuple[str, ...]
    skipped: tuple[str, ...]


def reopen_run(stored: Mapping[str, Any], uri: str, permission: CodePermission) -> ReopenedRun:
    """Open the source, the model and the functions of an output.

    Args:
        stored: content of job.json.
        uri: of the output, for messages.
        permission: the code that may run.
    """
    dataset, plan, source, skipped = None, None, None, ()
    try:
        job = Job.reopen(stored["job"], where=f"{uri}/_varve/job.json")
        source, skipped = job.source, _not_permitted(job, permission)
        dataset = reopen_source(stored, uri)
        if permission.remote_code or not job.model.trust_remote_code:
            plan = reopen_plan(stored, uri, permission)
    except VarveError as e:
        failure = f"the source, the model or the code of the run cannot be opened: {e}"
        return ReopenedRun(dataset, None, source, (failure,), skipped)
    return ReopenedRun(dataset, plan, source, (), skipped)


def _not_permitted(job: Job, permission: CodePermission) -> tuple[str, ...]:
    skipped = []
    if job.model.trust_remote_code and not permission.remote_code:
        skipped.append(
            "vectors were not encoded again: the model needs the Python code of its checkpoint. If you trust "
            f"{job.model.name}, add --trust-remote-code"
        )
    if job.computed and permission.folder is None:
        names = ", ".join(job.computed)
        skipped.append(
            f"{names}: not computed again, because this runs the Python functions of the job. If you trust them, add "
            "--code FOLDER with the folder of their modules"
        )
    elif job.computed and job.model.trust_remote_code and not permission.remote_code:
        skipped.append(f"{', '.join(job.computed)}: not computed again without --trust-remote-code")
    return tuple(skipped)
