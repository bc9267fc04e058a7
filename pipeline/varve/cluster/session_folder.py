"""The private folder of a local Ray: its sockets, its logs and what it spills.

Ray's default, a folder `ray` in the temporary folder, is open to all users of the machine, and each run leaves a
session in it. Knows nothing of Ray's processes. Invariant: a folder is removed only if no live process holds its lock,
and only if it is of this user.
"""

import fcntl
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_PREFIX = "varve-"
_NAME_BYTES = 3
# Other folders that begin with the prefix belong to the user, whatever is in them.
_NAME = re.compile(rf"{_PREFIX}[0-9a-f]{{{2 * _NAME_BYTES}}}")
_LOCK_NAME = "lock"
_OF_RAY = "r"
_NAME_ATTEMPTS = 100
# The longest path of a socket below the temporary folder, but for the id of this process.
_SOCKET_PATH = f"/{_PREFIX}000000/{_OF_RAY}/session_2026-01-01_00-00-00_000000_{{}}/sockets/plasma_store"
_MAX_SOCKET_PATH = 103 if sys.platform == "darwin" else 107  # bytes; of the operating system


@dataclass(frozen=True, slots=True)
class SessionFolder:
    """A folder that this process has made and locked; the lock ends with the process."""

    path: Path
    lock_fd: int

    @property
    def of_ray(self) -> Path:
        """Where Ray puts its sessions: a folder of its own, since Ray opens it to all users."""
        return self.path / _OF_RAY

    def remove(self) -> None:
        """Remove the folder; files that a process of Ray still writes may stay, until the next run removes them."""
        shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):  # closed before
            os.close(self.lock_fd)


def make_session_folder() -> SessionFolder:
    """Make a folder that only this user can read, and remove those of runs that were killed.

    Raises:
        OSError: the temporary folder can't be written.
    """
    parent = temporary_folder()
    _remove_abandoned(parent)
    path = _make_private(parent)
    lock_fd = os.open(path / _LOCK_NAME, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return SessionFolder(path, lock_fd)


def temporary_folder() -> Path:
    """Where the folder is made: RAY_TMPDIR, on Linux TMPDIR unless its path is too long for sockets, or /tmp."""
    if chosen := os.environ.get("RAY_TMPDIR"):
        return Path(chosen)
    of_linux = os.environ.get("TMPDIR", "") if sys.platform.startswith("linux") else ""
    fits = 0 < len(os.fsencode(of_linux)) <= max_folder_bytes()
    return Path(of_linux if fits else "/tmp")  # noqa: S108 (a private folder is made in it)


def max_folder_bytes() -> int:
    """Bytes that the path of the temporary folder may have: Ray's sockets lie below it."""
    return _MAX_SOCKET_PATH - len(_SOCKET_PATH.format(os.getpid()))


def _make_private(parent: Path) -> Path:
    """Make a folder with a short name: the path of a socket may have about 100 characters."""
    parent.mkdir(parents=True, exist_ok=True)
    for _ in range(_NAME_ATTEMPTS):
        path = parent / f"{_PREFIX}{secrets.token_hex(_NAME_BYTES)}"
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
            return path
    msg = f"no free name for a folder {_PREFIX}… in {parent}"
    raise FileExistsError(msg)


def _remove_abandoned(parent: Path) -> None:
    for path in parent.glob(f"{_PREFIX}*"):
        if not _NAME.fullmatch(path.name):
            continue
        with suppress(OSError), _lock_of(path) as is_free:
            if is_free:
                shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):
            if _is_made_again(path):
                shutil.rmtree(path, ignore_errors=True)


def _is_made_again(path: Path) -> bool:
    """Whether a process of Ray made a session in a folder that its run had removed: a run's own folder has a lock."""
    status = path.lstat()
    is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    return is_ours and os.listdir(path) == [_OF_RAY] and any((path / _OF_RAY).glob("session_2*"))  # noqa: PTH208


@contextmanager
def _lock_of(path: Path) -> Iterator[bool]:
    """Take the lock of another run's folder; yields whether its run has ended and is this user's.

    Raises:
        OSError: it has no lock, or it is another user's.
    """
    lock_fd = os.open(path / _LOCK_NAME, os.O_RDWR | os.O_NOFOLLOW)
    try:
        is_ours = not path.is_symlink() and path.stat().st_uid == os.fstat(lock_fd).st_uid == os.getuid()
        if is_ours:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield is_ours
    finally:
        os.close(lock_fd)
