"""Messages for the errors of file systems, the Hub and the builders of `datasets`.

Each raises its own exceptions, and few are OSErrors: a missing client is an ImportError; missing credentials and an
endpoint that does not answer are exceptions of the client.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from varve.errors import JobError, VarveError, one_line

# Errors whose message needs no advice about addresses, credentials or the network.
_SELF_EXPLAINING = (
    FileNotFoundError,
    NotADirectoryError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    NotImplementedError,
)


class UnreadableFileError(ValueError):
    """A file does not have what the job needs. The message is written for the user."""


@contextmanager
def as_job_errors(problem: str) -> Iterator[None]:
    """Convert exceptions raised inside to JobErrors. Varve's own errors pass unchanged.

    Args:
        problem: beginning of the message.

    Raises:
        JobError: the problem, the reason, and what to check.
    """
    try:
        yield
    except VarveError:
        raise
    except Exception as e:
        needs_advice = isinstance(e, UnicodeError) or not isinstance(e, _SELF_EXPLAINING)
        advice = f". {advice_on(e)}" if needs_advice else ""
        msg = f"{problem}: {describe_error(e)}{advice}"
        raise JobError(msg) from e


def describe_error(error: BaseException) -> str:
    """An exception's class and its message; fsspec raises some without a message."""
    message = one_line(error).rstrip(". ")
    if isinstance(error, UnreadableFileError):
        return message
    return type(error).__name__ if message in {"", "None"} else f"{type(error).__name__}: {message}"


def advice_on(error: BaseException) -> str:
    """What to check when a file or the Hub could not be read."""
    if isinstance(error, ImportError):
        return "Install it on every machine that reads"
    if isinstance(error, UnicodeError):
        return "If the files are not UTF-8, name their encoding: source.options: {encoding: cp1252}"
    return "Check the address, the credentials in the environment and the network"
