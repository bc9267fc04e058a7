"""The two ways in which Varve gives up.

A caller acts differently on each: a `JobError` is the user's to mend (the job file, a flag, a path; exit code 2), a
`RunError` happened while a right job ran (exit code 1). Rows that can't be encoded raise neither: they are written
with their reason in the `error` column.

Each takes one message, so it survives the pickling that carries it out of a Ray worker.
"""


class VarveError(Exception):
    """Something that is told to the user in one message, without a traceback."""

    exit_code = 1


class JobError(VarveError):
    """The job or the command is wrong: nothing was run, nothing was written."""

    exit_code = 2


class RunError(VarveError):
    """A right job failed while it ran. What was committed stays; the same command goes on from there."""
