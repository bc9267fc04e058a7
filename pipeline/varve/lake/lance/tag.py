"""Tags of a Lance dataset, which protect the version that a run reads from cleanup.

Invariants: a tag is created unless it exists, so drivers of one run agree on its version; it is removed only by a run
that names the version. Each function opens the dataset again: tagging changes the object for other threads.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from varve.errors import RunError
from varve.lake.lance.dataset import is_missing, lance_errors, open_latest
from varve.lake.table import VersionExpiredError

if TYPE_CHECKING:
    from lance import LanceDataset

_LISTINGS = 20  # Lance lists the names first, and fails if one is gone before it is read


def list_tags(dataset: "LanceDataset") -> Mapping[str, Any]:
    """All tags: name → what Lance has of it, such as its `version` and `branch`.

    Raises:
        RunError: they cannot be read.
    """
    for _ in range(_LISTINGS):
        with suppress(_TagGoneError), lance_errors(dataset.uri, "read"):
            try:
                return dataset.tags.list()
            except (OSError, ValueError) as e:
                if not is_missing(e):
                    raise
                raise _TagGoneError from e
    msg = f"{dataset.uri}: its tags cannot be listed, as others are created and removed all the time"
    raise RunError(msg)


class _TagGoneError(Exception):
    """A tag was removed while all were listed."""


def create_tag(uri: str, tag: str, version: int) -> int:
    """Protect a version from cleanup, unless the tag exists; returns the version that the tag protects.

    Raises:
        VersionExpiredError: the version is gone.
        RunError: the dataset cannot be written.
    """
    dataset = open_latest(uri)
    with lance_errors(uri, "tagged"):
        try:
            dataset.tags.create(tag, version)
        except ValueError as e:
            if (existing := tagged_version(uri, tag)) is not None:
                return existing
            if not is_missing(e):
                raise
            msg = f"{uri}: version {version} does not exist: it was removed by a cleanup of old versions"
            raise VersionExpiredError(msg) from e
        return version


def tagged_version(uri: str, tag: str) -> int | None:
    """The version that a tag protects; None if there is no such tag."""
    found = list_tags(open_latest(uri)).get(tag)
    return int(found["version"]) if found else None


def delete_tag(uri: str, tag: str, version: int) -> None:
    """Remove a tag if it protects this version; another driver may have removed it."""
    if tagged_version(uri, tag) != version:
        return
    dataset = open_latest(uri)
    with lance_errors(uri, "tagged"):
        try:
            dataset.tags.delete(tag)
        except (OSError, ValueError) as e:
            if not is_missing(e):
                raise
