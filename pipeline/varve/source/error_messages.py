"""What fails while a source is found or asked, in words.

Every file system, the hub and every builder have errors of their own, few of which are OSErrors: a missing client is an
ImportError, credentials that are not there and an endpoint that does not answer are the client's. Knows nothing of
what is asked for.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from varve.errors import JobError, VarveError, one_line

# Of these the message says enough: what is named is not there, or is no such thing, or can't be done with it.
_PLAIN = (
    FileNotFoundError,
    NotADirectoryError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    NotImplementedError,
)


@contextmanager
def as_job_errors(what: str) -> Iterator[None]:
    """Reporter whatever is raised inside as the user's to mend.

    Args:
        what: could not be done, the beginning of the message.

    Raises:
        JobError: with the reason and what to check; one of Varve's own errors passes as it is.
    """
    try:
        yield
    except VarveError:
        raise
    except Exception as e:
        advice = "" if isinstance(e, _PLAIN) and not isinstance(e, UnicodeError) else f". {advise(e)}"
        msg = f"{what}: {words(e)}{advice}"
        raise JobError(msg) from e


def words(error: BaseException) -> str:
    """The kind of an error and its message; fsspec raises some without one."""
    told = one_line(error).rstrip(". ")
    return type(error).__name__ if told in {"", "None"} else f"{type(error).__name__}: {told}"


def advise(error: BaseException) -> str:
    """What to check where something could not be asked at all."""
    if isinstance(error, ImportError):
        return "Install it on every machine that reads"
    if isinstance(error, UnicodeError):
        return "If the files are not UTF-8, name their encoding: source.options: {encoding: cp1252}"
    return "Check the address, the credentials in the environment and the network"
