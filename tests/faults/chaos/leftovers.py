"""Processes that jobs leave behind: this command adopts them, so that it finds them and ends them.

Invariant: processes that lived when it was made, and servers, are not touched.
"""

import ctypes
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tests.faults.chaos.ray_cluster import MARK
from tests.servers.processes import descendants

_PR_SET_CHILD_SUBREAPER = 36
# Ray's agents report the death of their node to its head; if that is dead too, they end after a minute.
_PATIENCE_S = 100
# Parts of the command lines of what ends with this command, not with a job.
_OURS = (b"tests.servers", b"radosgw", b"ceph-", b"weed", b"azurite", b"postgres", b"multiprocessing")


def adopt_orphans() -> None:
    """Make this process the parent of its descendants whose parent has ended."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


class Leftovers:
    """What has started since this was made."""

    def __init__(self) -> None:
        self._before = set(descendants())

    def _found(self) -> dict[int, bytes]:
        found = descendants()
        return {pid: title for pid, title in found.items() if pid not in self._before and _is_of_a_job(pid, title)}

    def check(self) -> None:
        """Wait for the end of the processes of jobs; all drivers have ended, and were waited for.

        Raises:
            AssertionError: some live on; they are killed.
        """
        deadline = time.monotonic() + _PATIENCE_S
        while (found := self._found()) and time.monotonic() < deadline:
            self._reap()
            time.sleep(0.2)
        self.kill()
        titles = [title.replace(b"\0", b" ")[:150].decode(errors="replace") for title in found.values()]
        assert not found, f"{len(found)} process(es) lived {_PATIENCE_S} s after the last driver: {titles}"

    def _reap(self) -> None:
        """Wait for orphans that have ended: Ray's workers take a raylet that nobody waited for, for one that lives."""
        for pid in set(descendants()) - self._before:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    def kill(self) -> None:
        """End them."""
        for pid in self._found():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _is_of_a_job(pid: int, title: bytes) -> bool:
    """Whether it is not ours, nor of the cluster, nor one that has ended."""
    if not title or any(part in title for part in _OURS):
        return False
    with suppress(OSError):
        return not any(f"{MARK}=1".encode() in Path(f"/proc/{each}/environ").read_bytes() for each in _lineage(pid))
    return False


def _lineage(pid: int) -> Iterator[int]:
    """The process and those above it, up to this one: a process that sets its title overwrites its environment."""
    while pid not in {0, 1, os.getpid()}:
        yield pid
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
