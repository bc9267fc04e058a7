"""A finished folder output as the origin of a table's rows: what may be published, and the job that publishes it.

Knows nothing of formats. Invariant: the job reads the version of the source table that the output was made from, with
the model and the features of the output, so its feature set is that of an ordinary run to the table.
"""

from dataclasses import dataclass
from typing import Any, Literal

from varve.config.job import Job
from varve.config.table_address import TableAddress, is_table
from varve.errors import JobError
from varve.lake.text_hash import TEXT_HASH
from varve.output.run_output import Output
from varve.planning.plan import Plan
from varve.planning.saved_job import read_job
from varve.planning.saved_plan import CodePermission, reopen_plan
from varve.source.table_source import parse_pin

_ENCODING = ("dtype", "tokens_per_pack", "block_rows", "rows_per_part")


@dataclass(frozen=True, slots=True)
class FinishedOutput:
    """An output whose rows can be published.

    Attributes:
        output: its parts.
        plan: of its run, with the source at the version that was read.
    """

    output: Output
    plan: Plan

    @property
    def encoding(self) -> dict[str, Any]:
        """The values of `Resolved` that its vectors were computed with, and the grid of its parts."""
        return {name: getattr(self.plan.resolved, name) for name in _ENCODING}

    def job_to(self, address: TableAddress, key: str, partition: Literal["source", "none"]) -> Job:
        """The job of a run from the output's source to a table.

        Args:
            address: of the feature table.
            key: column that identifies a row.
            partition: see `config.output.Output`.

        Raises:
            JobError: rows cannot be published with this key, or in a table of this format.
        """
        self._check_key(key)
        if address.format == "lance":
            msg = f"--table: {address} is a Lance table, whose features are columns of the source: run varve embed"
            raise JobError(msg)
        content = self.plan.job.model_dump(mode="json")
        output = {name: content["output"][name] for name in ("dtype", "rows_per_part", "max_errors")}
        assert self.plan.dataset.commit is not None
        version = parse_pin(self.plan.dataset.commit)[1]
        keep = [name for name in self.plan.job.source.kept if name not in {key, TEXT_HASH}]
        content["source"] |= {"at": version, "key": key, "keep": keep}
        content["model"] |= {"revision": self.plan.resolved.model_commit or content["model"]["revision"]}
        content["output"] = output | {"table": str(address), "partition": partition}
        return Job.parse(content, where=self.output.path).in_folder(self.plan.job.folder)

    def _check_key(self, key: str) -> None:
        kept = [name for name in self.plan.job.source.kept if name != TEXT_HASH]
        if key not in kept:
            listed = f"Its kept columns: {', '.join(kept)}" if kept else "It has none: run the job with source.keep"
            msg = f"--key: {key!r} is not a kept column of {self.output.path}, so its rows are not identified. {listed}"
            raise JobError(msg)


def open_finished(path: str, permission: CodePermission) -> FinishedOutput:
    """Open a finished output whose source is a table.

    Args:
        path: of the output.
        permission: the code that may run.

    Raises:
        JobError: it has not finished, its source is no table, its functions may not run, or the source or the model
            has changed.
        RunError: the version of the source is gone, or the output cannot be read.
    """
    if is_table(path):
        msg = f"{path} is a table, not a folder: varve publish copies a finished folder output to a table"
        raise JobError(msg)
    output = Output.open(path)
    stored = read_job(output.storage)
    if stored is None:
        msg = f"{output.path} holds no job.json, so its job is not known"
        raise JobError(msg)
    job = Job.reopen(stored["job"], where=output.path)
    _check_source(job, output.path)
    if job.computed and permission.folder is None:
        msg = f"features: {', '.join(job.computed)}: --code FOLDER permits the job's Python functions to run"
        raise JobError(msg)
    if stored["fingerprint"] != output.manifest.fingerprint:
        msg = f"{output.path}: its job.json is of another job than its manifest. See `varve verify`"
        raise JobError(msg)
    return FinishedOutput(output, reopen_plan(stored, output.path, permission))


def _check_source(job: Job, path: str) -> None:
    """Refuse outputs whose rows are not those of a version of an Iceberg or Delta table."""
    source = job.source.table
    if job.output.table:
        msg = f"{path} is the folder of a run to {job.output.table}: it holds only the rows that the run encoded"
    elif source is None:
        msg = (
            f"source: {path} was made from {job.source.dataset}, which is not a table, so its rows cannot be compared "
            "with those of a table later. Write the source as an Iceberg or Delta table, and run the job with "
            "source.table and output.table"
        )
    elif source.startswith("lance+"):
        msg = f"source.table: {source} is a Lance table, whose features are columns of its own: run varve embed"
    else:
        return
    raise JobError(msg)
