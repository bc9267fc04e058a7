"""Varve's exceptions, and how messages of other libraries are quoted in them.

`JobError`: the job file, a flag or a path is wrong, and the user must correct it (exit code 2). `RunError`: a valid job
failed while it ran (exit code 1). Rows that cannot be encoded raise neither: they are written with their reason in the
column `error`. Each exception takes one message, so that it can be pickled and leave a Ray worker.
"""


class VarveError(Exception):
    """An error that commands print as one message, without a traceback."""

    exit_code = 1


class JobError(VarveError):
    """The job or the command is wrong. Nothing was run and nothing was written."""

    exit_code = 2


class RunError(VarveError):
    """A valid job failed while it ran. Committed parts stay; the same command resumes the run."""


def one_line(error_or_text: object, limit: int | None = 300) -> str:
    """Return the text of an error as one line of at most `limit` characters; each run of white space is one space."""
    return " ".join(str(error_or_text).split())[:limit]


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without final dots and colons, or its class name if it has none.

    The lines that follow often hold advice for callers of that library, which does not apply to users of Varve.
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
