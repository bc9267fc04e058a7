"""Opens Lance datasets by their address and turns Lance's errors into Varve's.

Knows nothing of rows or features. Invariants: addresses hold no credential, Lance reads them from the environment of
each process; an opened version is kept, since versions never change.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from varve.errors import JobError, RunError, one_line
from varve.lake.table import VersionExpiredError

if TYPE_CHECKING:
    from lance import LanceDataset

_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
_ERRORS = (OSError, ValueError, RuntimeError, KeyError)
_OPENED = 32  # versions that a process keeps open


def lance_library() -> Any:
    """The package lance.

    Raises:
        JobError: it is not installed.
    """
    try:
        import lance  # noqa: PLC0415 (half a second)
        import lance.commit  # noqa: PLC0415
        import lance.file  # noqa: PLC0415
        import lance.fragment  # noqa: PLC0415
    except ImportError as e:
        msg = "pylance is missing: run pip install '.[lance]' in Varve's folder"
        raise JobError(msg) from e
    return lance


def storage_options(uri: str) -> dict[str, str]:
    """What Lance does not read from the environment: whether the user's endpoint has no TLS."""
    plain = any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS)
    return {"allow_http": "true"} if plain and "://" in uri else {}


@contextmanager
def lance_errors(uri: str, done: str) -> Iterator[None]:
    """Turn an error of Lance into a `RunError`.

    Args:
        uri: of the dataset, for the message.
        done: what cannot be done, as in "URI cannot be ...".
    """
    try:
        yield
    except _ERRORS as e:
        msg = f"{uri} cannot be {done}: {one_line(e)}"
        raise RunError(msg) from e


def open_latest(uri: str) -> "LanceDataset":
    """The latest version of a dataset.

    Raises:
        JobError: there is no dataset.
        RunError: it cannot be read.
    """
    with lance_errors(uri, "read"):
        try:
            return lance_library().dataset(uri, storage_options=storage_options(uri))
        except ValueError as e:
            if not is_missing(e):
                raise
            msg = f"{uri}: there is no Lance dataset: check the address"
            raise JobError(msg) from e


def open_version(uri: str, version: int) -> "LanceDataset":
    """A version of a dataset.

    Raises:
        VersionExpiredError: it does not exist.
        RunError: it cannot be read.
    """
    with lance_errors(uri, "read"):
        try:
            return _open(uri, version)
        except ValueError as e:
            if not is_missing(e):
                raise
            msg = f"{uri}: version {version} does not exist: it was removed by a cleanup of old versions"
            raise VersionExpiredError(msg) from e


@lru_cache(maxsize=_OPENED)
def _open(uri: str, version: int) -> "LanceDataset":
    return lance_library().dataset(uri, version=version, storage_options=storage_options(uri))


def is_missing(error: Exception) -> bool:
    """Whether an error of Lance means that a dataset, a version or a file does not exist."""
    return "not found" in str(error).lower()
