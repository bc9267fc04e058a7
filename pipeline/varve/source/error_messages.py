"""Messages for the errors of file systems, the Hub and the builders of `datasets`.

Each raises its own exceptions, and few are OSErrors: a missing client is an ImportError; missing credentials and an
endpoint that does not answer are exceptions of the client.
"""

import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from gzip import BadGzipFile
from lzma import LZMAError
from pathlib import Path
from zipfile import BadZipFile

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
    RuntimeError,
    MemoryError,
    EOFError,
    BadGzipFile,
    BadZipFile,
    LZMAError,
    zlib.error,
)
_TOO_LARGE = r"^.*(overflowed binary array capacity|array cannot contain more than).*"
# What `datasets` and Arrow advise their callers → what a user of Varve can do.
_ADVICE = {
    r" Example of usage: `load_dataset\(.*": ". Set source.name to one of them",
    r"^BuilderConfig (\S+) not found\. Available: ": r"there is no configuration \1. Set source.name to one of ",
    r"(?<=Dataset scripts are no longer supported, but found )(\S+)$": (
        r"\1. Name the data files: source.dataset: parquet (or csv, json), source.data_files: [...]"
    ),
    r"(OSError )?(Could not read encrypted metadata|Cannot decrypt ColumnMetadata).*": (
        "the file is encrypted, which Varve cannot read. Write it without encryption"
    ),
    _TOO_LARGE: "a column of 1,024 rows has more than 2 GiB, which Varve cannot read",
}


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
    """An exception's message, with its class unless it is Varve's own; fsspec raises some without a message."""
    message = one_line(error).rstrip(". ")
    for pattern, advice in _ADVICE.items():
        message = re.sub(pattern, advice, message)
    if isinstance(error, UnreadableFileError | VarveError):
        return message
    return type(error).__name__ if message in {"", "None"} else f"{type(error).__name__}: {message}"


def is_too_large(error: BaseException) -> bool:
    """Whether Arrow cannot hold the values of a column."""
    return re.match(_TOO_LARGE, one_line(error)) is not None


def advice_on(error: BaseException) -> str:
    """What to check when a file or the Hub could not be read."""
    if isinstance(error, ImportError):
        return "Install it on every machine that reads"
    if isinstance(error, UnicodeError):
        return "If the files are not UTF-8, name their encoding: source.options: {encoding: cp1252}"
    if isinstance(error, OSError) and _is_in_cache(error.filename):
        return "Set HF_HOME to a folder that can be written: `datasets` keeps its files there"
    if isinstance(error, OSError) and error.filename is not None:
        return "Check that the user who runs this may read it"
    return "Check the address, the credentials in the environment and the network"


def _is_in_cache(path: object) -> bool:
    """Whether a path is that of the Hugging Face libraries' cache, in it, or the folder that it should be made in."""
    default = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")  # noqa: PTH118 (see below)
    # Unlike Path.expanduser, this accepts a user without a home folder.
    cache = Path(os.path.expanduser(os.environ.get("HF_HOME") or default)).absolute()  # noqa: PTH111
    return isinstance(path, str) and (Path(path) == cache.parent or Path(path).is_relative_to(cache))
