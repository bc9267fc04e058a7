"""What broken uploads leave behind: staged files of a local folder.

None of it was ever visible as an object, so removing it takes nothing away. The output's own client does not see it:
files are looked for on the disk. In a store a part goes up in one request, which leaves nothing: multipart uploads
there are other programs'.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from varve.errors import RunError
from varve.storage.object_store import Storage

# Local stores write to NAME#N and link it to NAME once it is whole.
_STAGED = re.compile(r".*#\d+")


@dataclass(frozen=True, slots=True)
class Leftover:
    """A staged file that no run will ever finish."""

    path: Path
    name: str  # below the output
    size: int  # bytes
    begun_at: datetime

    def remove(self) -> None:
        """Remove it, if it is still there.

        Raises:
            RunError: the file system refused.
        """
        try:
            self.path.unlink(missing_ok=True)
        except OSError as e:
            msg = f"{self.path}: can't be removed: {e.strerror}. Remove it as its owner, or make its folder writable"
            raise RunError(msg) from e


def find_leftovers(storage: Storage) -> Iterator[Leftover]:
    """What broken uploads have left below an output."""
    folder = Path(storage.uri)
    for path in sorted(folder.rglob("*#*")) if storage.is_local else ():
        if path.is_file() and _STAGED.fullmatch(path.name):
            status = path.stat()
            begun_at = datetime.fromtimestamp(status.st_mtime, UTC)
            yield Leftover(path, str(path.relative_to(folder)), status.st_size, begun_at)
