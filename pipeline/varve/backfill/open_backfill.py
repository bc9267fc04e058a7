"""Opens the tables of a job: the features go to a table of their own, or become columns of the source's table."""

from varve.backfill.backfill import Backfill
from varve.backfill.in_place_run import open_in_place
from varve.backfill.lance_backfill import LanceBackfill
from varve.backfill.sibling import SiblingBackfill
from varve.backfill.table_run import open_run
from varve.config.job import Job


def open_backfill(job: Job, *, create: bool = True) -> Backfill:
    """Open the source and the destination of a job with an output.table.

    Args:
        job: the job.
        create: create the destination, or add columns to it, if it lacks them.

    Raises:
        JobError: a table does not exist or does not fit the job.
        RunError: a catalog or store failed.
    """
    if any((table or "").startswith("lance+") for table in (job.source.table, job.output.table)):
        return LanceBackfill(open_in_place(job, create=create))
    return SiblingBackfill(open_run(job, create=create))
