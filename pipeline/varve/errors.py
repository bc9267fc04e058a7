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


def one_line(error_or_text: object, limit: int | None = 300) -> str:
    """The text of an error in one line of at most `limit` characters, runs of white space as one space."""
    return " ".join(str(error_or_text).split())[:limit]


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without a final full stop or colon; its class name if it has no message.

    Libraries put advice into the lines that follow, which is wrong for users of Varve.
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
