"""Opens the tables of a job: the features go to a table of their own, or become columns of the source's table."""

from varve.backfill.backfill import Backfill
from varve.backfill.in_place.in_place_backfill import InPlaceBackfill
from varve.backfill.in_place.run import open_in_place
from varve.backfill.sibling import SiblingBackfill
from varve.backfill.table_run import open_run
from varve.config.job import Job
from varve.errors import JobError


def open_backfill(job: Job, *, create: bool = True) -> Backfill:
    """Open the source and the destination of a job with an output.table.

    Args:
        job: the job.
        create: create the destination, or add columns to it, if it lacks them.

    Raises:
        JobError: a table does not exist or does not fit the job.
        RunError: a catalog or store failed.
    """
    if not (job.source.table and job.output.table):
        msg = "output.table needs source.table: a table holds features of the rows of another table, or of its own rows"
        raise JobError(msg)
    is_lance = any((table or "").startswith("lance+") for table in (job.source.table, job.output.table))
    if is_lance or job.output.columns == "rewrite":
        return InPlaceBackfill(open_in_place(job, create=create))
    if job.source.table == job.output.table:
        msg = (
            f"output.table: {job.output.table} is the source itself. Name a table of its own for the features, or set "
            "output.columns: rewrite, which writes all files of the source again with the new columns"
        )
        raise JobError(msg)
    return SiblingBackfill(open_run(job, create=create))
