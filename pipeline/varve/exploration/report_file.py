"""Where the page of a report is written: below the output, or in a file of the user's choice.

Knows nothing of what the page shows. Invariants: the page appears completely or not at all; only an earlier page of a
report is replaced.
"""

import os
import posixpath
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from uuid import uuid4

from varve.errors import JobError, RunError
from varve.storage.object_store import Storage

PAGE_NAME = "report.html"
_MARK = b"<!-- varve report -->\n"  # the last line of every page
_MAX_PAGE_BYTES = 2**28


@dataclass(frozen=True, slots=True)
class ReportFile:
    """The file or object of a page.

    Attributes:
        folder: the folder, or the address of a prefix in a store.
        name: of the page in it.
        flag: that named it, for messages; empty for the default.
    """

    folder: Storage
    name: str
    flag: str = ""

    @classmethod
    def choose(cls, output: str, chosen: str | None = None) -> Self:
        """The file for the page of an output.

        Args:
            output: path of the output.
            chosen: file or address of an object; None: `report.html` of the output.

        Raises:
            JobError: the chosen path is empty or a folder, or holds something else than a report.
        """
        place = cls(Storage(output, patient=False), PAGE_NAME) if chosen is None else cls._of(chosen)
        place.check()
        return place

    @classmethod
    def _of(cls, chosen: str) -> Self:
        path = chosen if "://" in chosen else str(Path(chosen).absolute()) if chosen.strip() else ""
        folder, name = posixpath.split(path)
        if not name or ("://" not in path and os.path.isdir(path)):  # noqa: PTH112 (False for a name that is too long)
            msg = f"--output: {chosen!r} is {'a folder' if name else 'not the name of a file'}: expected a file"
            raise JobError(msg)
        return cls(Storage(folder, patient=False), name, "--output: ")

    @property
    def address(self) -> str:
        """The path or address of the page."""
        return posixpath.join(self.folder.uri, self.name)

    def check(self) -> None:
        """Check that an earlier report, or nothing, is there.

        Raises:
            JobError: something else is.
            RunError: the store failed.
        """
        stored = self._read()
        if stored is not None and not stored.endswith(_MARK):
            msg = f"{self.flag}{self.address} exists and is not a report of Varve. Move it, or choose another --output"
            raise JobError(msg)

    def _read(self) -> bytes | None:
        if not self.folder.is_local:
            return self.folder.read_at_most(self.name, _MAX_PAGE_BYTES)
        try:
            with Path(self.address).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - len(_MARK)))
                return file.read()
        except FileNotFoundError:
            return None
        except OSError as e:
            msg = f"{self.flag}{self.address} cannot be read: {e.strerror}. Choose another --output"
            raise JobError(msg) from e

    def write(self, page: str) -> None:
        """Write the page.

        Raises:
            JobError: there is something else now.
            RunError: it cannot be written.
        """
        self.check()
        content = page.encode(errors="replace").rstrip() + b"\n" + _MARK
        if self.folder.is_local:
            self._replace(content)
        else:
            self.folder.write(self.name, len(content), lambda: [content])

    def _replace(self, content: bytes) -> None:
        """Replace a local file at once."""
        path = Path(self.address)
        temporary = path.with_name(f".{uuid4().hex}.html")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                file.write(content)
            temporary.replace(path)
        except OSError as e:
            msg = f"{self.address} cannot be written: {e.strerror}. Free disk space, or choose another --output"
            raise RunError(msg) from e
        finally:
            with suppress(OSError):
                temporary.unlink()
