"""Sees what a case does outside of its folder: files written, programs started, connections, code that is run.

Python's audit events; files that compiled code writes are found by listing the places where paths could lead. The home
folder may not be changed: as permissions do not stop root, a change is seen here. Knows nothing of targets.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.fuzz.json_changes import OUTSIDE

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
_PROCESSES = frozenset(
    {"subprocess.Popen", "os.exec", "os.posix_spawn", "os.system", "os.spawn", "os.fork", "pty.spawn"}
)
_CHANGES = frozenset(
    {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.link", "os.symlink", "os.chmod"}
)
_LOCAL = frozenset({"127.0.0.1", "localhost", "::1"})
# `torch.compile` and others list a processor once per process; nothing of a file is in the command.
_HARMLESS = ("lscpu", "uname", "ldconfig", "gcc", "cc", "file")
CACHES = "caches"  # in TMPDIR: what libraries keep from one case to the next


class Watch:
    """Events of one process; Python cannot remove the hook, so there is one for all cases."""

    def __init__(self, root: Path) -> None:
        """Watch the folder of a campaign, which holds `home`, `tmp` and the folders of targets."""
        self._root = str(root)
        self._seen: list[str] = []
        self._active = self._confined = False
        self._allowed: tuple[str, ...] = ()
        sys.addaudithook(self._on_event)

    @contextmanager
    def case(self, folder: Path, *, confined: bool) -> Iterator[list[str]]:
        """The list of what happens within, filled as it happens; only `folder` and TMPDIR may be written."""
        before = self._listing()
        self._allowed = (str(folder), f"{self._root}/tmp", "/dev/null", "/proc/self/")
        self._seen, self._active, self._confined = [], True, confined
        try:
            yield self._seen
        finally:
            self._active = False
            self._seen += [f"written outside: {name}" for name in sorted(self._listing() - before)]

    def _listing(self) -> set[str]:
        root = Path(self._root)
        around = [Path(OUTSIDE), root, *(root / name for name in ("home", "tmp", f"tmp/{CACHES}", "a", "a/b"))]
        return {entry.path for folder in around if folder.is_dir() for entry in os.scandir(folder)}

    def _on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._active:
            return
        if event == "open":
            self._on_open(arguments)
        elif event in _PROCESSES:
            self._on_process(event, arguments)
        elif event in _CHANGES:
            self._on_change(event, arguments)
        elif event == "socket.connect":
            self._on_connection(arguments[1])
        elif event == "exec":
            self._on_code(getattr(arguments[0], "co_filename", ""))
        elif event == "pickle.find_class":
            self._seen.append(f"code run: pickle of {arguments[0]}.{arguments[1]}")

    def _on_open(self, arguments: tuple[Any, ...]) -> None:
        path, _, flags = arguments
        if not isinstance(path, (str, bytes)):
            return
        name = _absolute(path)
        if self._confined and name.startswith(OUTSIDE):
            self._seen.append(f"read outside: {name}")
        if flags & _WRITES and not self._is_allowed(name):
            self._seen.append(f"written outside: {name}")

    def _on_change(self, event: str, arguments: tuple[Any, ...]) -> None:
        is_in_open_folder = arguments[-1] not in {-1, None}  # whose path was seen when it was opened
        for argument in arguments[1:2] if event == "os.symlink" else arguments[:2]:
            if not isinstance(argument, (str, bytes)) or (is_in_open_folder and not os.path.isabs(argument)):  # noqa: PTH117
                continue
            if not self._is_allowed(_absolute(argument)):
                self._seen.append(f"written outside: {event} {argument!r:.200}")

    def _on_process(self, event: str, arguments: tuple[Any, ...]) -> None:
        program = Path(str(arguments[0])).name if arguments else ""
        if program not in _HARMLESS:
            self._seen.append(f"process started: {event} {arguments!r:.200}")

    def _on_connection(self, address: Any) -> None:
        if isinstance(address, tuple) and address[0] not in _LOCAL:
            self._seen.append(f"connection: {address!r:.100}")

    def _on_code(self, file: str) -> None:
        if file.startswith((self._root, OUTSIDE)):
            self._seen.append(f"code run: {file}")

    def _is_allowed(self, name: str) -> bool:
        return name.startswith(self._allowed) or "__pycache__" in name


def _absolute(path: str | bytes) -> str:
    """The path without `..`, and with links as they are: tests of links are elsewhere."""
    return os.path.abspath(os.fsdecode(path))  # noqa: PTH100 (Path.resolve reads the disk, in a hook of such reads)
