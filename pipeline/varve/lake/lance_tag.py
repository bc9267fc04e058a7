"""Tags of a Lance dataset, which protect the version that a run reads from cleanup.

Invariants: a tag is created unless it exists, so drivers of one run agree on its version; it is removed only by a run
that names the version.
"""

from contextlib import suppress

from varve.lake.lance_dataset import is_missing, lance_errors, open_latest, open_version
from varve.lake.table import VersionExpiredError


def create_tag(uri: str, tag: str, version: int) -> int:
    """Protect a version from cleanup, unless the tag exists; returns the version that the tag protects.

    Raises:
        VersionExpiredError: the version is gone.
        RunError: the dataset cannot be written.
    """
    dataset = open_version(uri, version)
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
    with lance_errors(uri, "read"):
        found = open_latest(uri).tags.list().get(tag)
    return int(found["version"]) if found else None


def delete_tag(uri: str, tag: str, version: int) -> None:
    """Remove a tag if it protects this version; another driver may have removed it."""
    if tagged_version(uri, tag) != version:
        return
    with lance_errors(uri, "tagged"), suppress(ValueError):
        open_latest(uri).tags.delete(tag)
