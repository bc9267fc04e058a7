"""Staged files that interrupted uploads leave in a local folder.

They were never visible as objects, so removing them is safe. The client does not list them, so they are searched on the
disk. In a store a part is uploaded in one request and leaves nothing; multipart uploads there belong to other programs.
Invariant: a file with another name than that of an object that Varve writes is not found, since people and other
programs name files `NAME#N` too.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from varve.errors import RunError
from varve.storage.object_store import Storage, is_folder

# A local store writes to NAME#N and links it to NAME when it is complete.
_STAGED = re.compile(r"(.*)#\d+")


@dataclass(frozen=True, slots=True)
class StaleUpload:
    """A staged file."""

    path: Path
    name: str  # relative to the output
    size: int  # bytes
    modified_at: datetime

    def remove(self) -> None:
        """Remove the file if it still exists.

        Raises:
            RunError: the file system refused.
        """
        try:
            self.path.unlink(missing_ok=True)
        except OSError as e:
            msg = f"{self.path}: cannot be removed: {e.strerror}. Remove it as its owner, or make its folder writable"
            raise RunError(msg) from e


def find_stale_uploads(storage: Storage, names: re.Pattern[str]) -> Iterator[StaleUpload]:
    """The staged files of objects below a local output; none for a store.

    Args:
        storage: the output.
        names: matches the names of the objects, relative to the output.

    Raises:
        JobError: the path of the output is not that of a folder.
    """
    folder = Path(storage.uri)
    if not storage.is_local or not is_folder(storage.uri):
        return
    # Other processes may remove folders and files meanwhile, which `os.walk`, unlike `Path.rglob`, ignores.
    found = [Path(root, name) for root, _, files in os.walk(folder) for name in files if _STAGED.fullmatch(name)]
    for path in sorted(found):
        staged = _STAGED.fullmatch(path.relative_to(folder).as_posix())
        if staged is None or not names.fullmatch(staged[1]):
            continue
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        modified_at = datetime.fromtimestamp(status.st_mtime, UTC)
        yield StaleUpload(path, str(path.relative_to(folder)), status.st_size, modified_at)
