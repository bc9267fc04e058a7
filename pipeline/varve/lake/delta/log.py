"""Opens versions of a Delta table; errors name what is wrong with one that cannot be opened.

Knows nothing of rows. Invariants: an opened version is one whose rows Varve reads right: tables with features of the
Delta protocol that would need more are refused by name; credentials come from the environment alone.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TypeVar

from deltalake import DeltaTable as DeltaVersion
from deltalake.exceptions import DeltaError, TableNotFoundError
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from varve.errors import JobError, RunError, one_line
from varve.lake.table import VersionExpiredError
from varve.storage.object_store import Storage

T = TypeVar("T")

_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
# What readers of these features need: deletion vectors are applied, widened columns are cast, the others change
# neither the data files nor their list. A column of another type than this module knows is only refused if it is read.
_READ_FEATURES = frozenset(
    {
        "columnMapping",  # while no mode is set
        "deletionVectors",
        "timestampNtz",
        "typeWidening",
        "typeWidening-preview",
        "v2Checkpoint",
        "vacuumProtocolCheck",
        "variantType",
        "variantType-preview",
    }
)
# What the text of an error has if the connection broke or the store failed, and if neither changes by itself.
_TRANSIENT = ("HTTP error", "error reading a body", "500 ", "502 ", "503 ", "504 ", "SlowDown")
_PERMANENT = ("tcp connect error", "builder error", "credentials")
_WRONG_PLACE = ("NoSuchBucket", "Invalid table location")
_MAX_ATTEMPTS = 8
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.1, 5.0
_MAPPING_KEY = "delta.columnMapping.mode"
_ANSWER = re.compile(r"<Code>(\w+)</Code>\s*<Message>([^<]*)</Message>")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def find_version(name: str, version: int | None = None) -> DeltaVersion | None:
    """A version of the table at a path or URI, by default the latest; None if there is no table.

    Raises:
        VersionExpiredError: there is a table, and it has no such version, or no longer.
        JobError: the table has a feature that cannot be read.
        RunError: the store failed.
    """
    with library_errors(name, "read"):
        try:
            found = retried(lambda: DeltaVersion(name, version, storage_options=storage_options(name)))
        except TableNotFoundError as e:
            if version is None:
                return None
            error: Exception = e
        except (DeltaError, OverflowError, OSError) as e:
            if any(sign in str(e) for sign in _WRONG_PLACE):
                msg = f"delta+{name}: there is no Delta table: {clean(e)}"
                raise JobError(msg) from e
            if isinstance(e, OSError):
                raise
            if version is None or "unsupported" in str(e).lower():
                _refuse_unsupported(name, e)
                raise
            error = e
        else:
            _check_features(name, found)
            return found
    latest = find_version(name)
    if latest is None:
        return None
    msg = (
        f"delta+{name}: version {version} cannot be read: the latest one is {latest.version()}, and old ones are gone "
        f"when their log was cleaned up ({clean(error)})"
    )
    raise VersionExpiredError(msg)


def open_version(name: str, version: int | None = None) -> DeltaVersion:
    """A version of a table that exists.

    Raises:
        JobError: there is no table.
        VersionExpiredError, RunError: see `find_version`.
    """
    if (found := find_version(name, version)) is None:
        msg = f"delta+{name}: there is no Delta table: expected a folder with _delta_log"
        raise JobError(msg)
    return found


def version_at(name: str, at: str | int | None) -> DeltaVersion:
    """The version that a job names: None is the latest; a number; or the latest one at an ISO timestamp.

    Raises:
        JobError: there is no such table or version.
        RunError: the store failed.
    """
    if at is None:
        return open_version(name)
    try:
        if isinstance(at, int) or (at.isascii() and at.isdigit()):
            return open_version(name, int(at))
        return _version_at_time(name, at)
    except VersionExpiredError as e:
        msg = f"source.at: {e}"
        raise JobError(msg) from e


def storage_options(name: str) -> dict[str, str]:
    """What delta-rs does not read from the environment."""
    plain = any(os.environ.get(endpoint, "").startswith("http://") for endpoint in _ENDPOINTS)
    return {"allow_http": "true"} if plain and "://" in name else {}


@contextmanager
def library_errors(name: str, done: str) -> Iterator[None]:
    """Converts errors of delta-rs to a `RunError`."""
    try:
        yield
    except (DeltaError, OSError, ValueError, TypeError) as e:
        msg = f"delta+{name} cannot be {done}: {clean(e)}"
        raise RunError(msg) from e


def retried(request: Callable[[], T]) -> T:
    """Repeat a request that failed because of the connection: delta-rs repeats neither puts nor broken answers.

    Args:
        request: finds out what an earlier attempt did, if it is one that changes the table.

    Raises:
        DeltaError, OSError: the last failure.
    """
    retrying = Retrying(
        retry=retry_if_exception(_is_transient),
        stop=stop_after_attempt(_MAX_ATTEMPTS),
        wait=wait_random_exponential(multiplier=_FIRST_PAUSE_S, max=_MAX_PAUSE_S),
        reraise=True,
    )
    return retrying(request)


def clean(error: BaseException) -> str:
    """The store's answer in an error of delta-rs, or its message, which is a tree in colours, as one line."""
    text = _ANSI.sub("", str(error)).replace("↳", ":")
    answer = _ANSWER.search(text)
    return one_line(f"{answer[1]}: {answer[2]}" if answer else text)


def log_name(version: int) -> str:
    """Name of the file of a version, below the table."""
    return f"_delta_log/{version:020d}.json"


def _is_transient(error: BaseException) -> bool:
    """Whether a request may succeed later; delta-rs has repeated those to unreachable endpoints."""
    text = str(error)
    is_connection = any(sign in text for sign in _TRANSIENT)
    return isinstance(error, (DeltaError, OSError)) and is_connection and not any(sign in text for sign in _PERMANENT)


def _version_at_time(name: str, at: str) -> DeltaVersion:
    try:
        when = datetime.fromisoformat(at)
    except ValueError as e:
        msg = (
            f"source.at: {at!r} is not a version of delta+{name}: expected a number or an ISO timestamp, such as "
            "2026-11-30T12:00:00Z; Delta has no tags and branches"
        )
        raise JobError(msg) from e
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    version = open_version(name)
    with library_errors(name, "read"):
        try:
            retried(lambda: version.load_as_version(when))
        except DeltaError as e:
            msg = f"source.at: delta+{name} has no version at {when.isoformat()}: {clean(e)}"
            raise JobError(msg) from e
    _check_time(name, version, when)
    _check_features(name, version)
    return version


def _check_time(name: str, version: DeltaVersion, when: datetime) -> None:
    """Check that a version is not younger: delta-rs returns the oldest one for all times before it."""
    content = Storage(name, patient=False).read(log_name(version.version())) or b""
    entries = [json.loads(line) for line in content.splitlines() if b'"commitInfo"' in line]
    committed = next((entry["commitInfo"].get("timestamp") for entry in entries if "commitInfo" in entry), None)
    if committed is not None and committed > when.timestamp() * 1000:
        first = datetime.fromtimestamp(committed / 1000, UTC).isoformat(timespec="seconds")
        msg = f"source.at: delta+{name} has no version at {when.isoformat()}: version {version.version()} is of {first}"
        raise JobError(msg)


def _check_features(name: str, version: DeltaVersion) -> None:
    features = set(version.protocol().reader_features or ())
    mapped = version.metadata().configuration.get(_MAPPING_KEY, "none") != "none"
    if unknown := sorted(features - _READ_FEATURES | ({"columnMapping"} if mapped else set())):
        _refuse(name, ", ".join(unknown))


def _refuse_unsupported(name: str, error: Exception) -> None:
    """Raise the JobError of a table that delta-rs refuses because of its features."""
    message = clean(error)
    if "column mapping" in message.lower():
        _refuse(name, "columnMapping")
    if "catalog-managed" in message:
        _refuse(name, "catalogManaged")
    if feature := re.search(r"[Ff]eature '?(\w[\w-]*)'? is not supported", message):
        _refuse(name, feature[1])


def _refuse(name: str, features: str) -> None:
    msg = (
        f"delta+{name}: Varve cannot read tables with {features}: expected a table without it. Copy the columns that "
        "the job needs to another table, or drop the feature (ALTER TABLE ... DROP FEATURE)"
    )
    raise JobError(msg)
