"""Small file systems of this command alone, which can be filled: /dev/shm, and a disk.

The command runs again in a mount namespace of its own, so that the mounts are seen by its processes only and end with
them. Only root may do this; for others, faults that need them are left out.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

SHM = Path("/dev/shm")
SHM_BYTES, DISK_BYTES = 600 << 20, 200 << 20
_ENTERED = "CHAOS_NAMESPACE"


def enter(argv: Sequence[str]) -> bool:
    """Replace this process by the same command in a namespace; returns whether it is in one.

    Args:
        argv: arguments of the command.
    """
    if os.environ.get(_ENTERED):
        return True
    unshare, options = shutil.which("unshare"), ["--mount", "--propagation=private"]
    if unshare and not os.getuid() and subprocess.run([unshare, *options, "true"], check=False).returncode == 0:
        command = [unshare, *options, sys.executable, "-m", "tests.faults.chaos", *argv]
        os.execve(unshare, command, {**os.environ, _ENTERED: "1"})
    return False


def mount(folder: Path, num_bytes: int) -> None:
    """Mount an empty file system in memory at a folder."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)], check=True)


def unmount(folder: Path) -> None:
    """Remove a mounted file system, though files on it may be open."""
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


class Ballast:
    """A file that takes all the room of a file system."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "ballast"

    def put(self) -> None:
        """Take the room that is free; it is asked for again if another process has taken a part of it meanwhile."""
        with self._path.open("wb") as file:
            while num_bytes := self._free_bytes():
                with suppress(OSError):
                    os.posix_fallocate(file.fileno(), file.tell(), num_bytes)
                    file.seek(num_bytes, os.SEEK_CUR)

    def _free_bytes(self) -> int:
        free = os.statvfs(self._path.parent)
        return free.f_bavail * free.f_frsize

    def remove(self) -> None:
        """Give it back."""
        self._path.unlink()
