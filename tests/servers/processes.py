"""Starts servers on free ports of the loopback interface; they end with the process that started them."""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.waiting import wait_until

_PR_SET_PDEATHSIG = 1
_LISTENS = "0A"  # state of a socket in /proc/net/tcp


def free_port() -> int:
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Different free ports: all are bound before the first is released, or the system might return one twice."""
    with ExitStack() as bound:
        sockets = [bound.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


def start(command: Sequence[str], log: Path, **more) -> subprocess.Popen:
    """Start a process that is killed when its parent dies, even by SIGKILL."""
    libc = ctypes.CDLL(None)

    def die_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    with log.open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, preexec_fn=die_with_parent, **more)  # noqa: PLW1509


def end(processes: Sequence[subprocess.Popen]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def ray_folder() -> Iterator[str]:
    """A folder for Ray's sockets, with a short name.

    Ray's processes write to it for a moment after their end, so its removal is retried.
    """
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")

    def removed() -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        return not Path(folder).exists()

    try:
        yield folder
    finally:
        wait_until(removed, f"the end of Ray's processes in {folder}")


def descendants(ancestor: int | None = None) -> dict[int, bytes]:
    """Id → command line of a process, by default this one, and of all processes below it."""
    root = os.getpid() if ancestor is None else ancestor
    parents, titles = {}, {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            titles[int(process.name)] = (process / "cmdline").read_bytes()
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue

    def is_ours(pid: int) -> bool:
        while pid in parents and pid != root:
            pid = parents[pid]
        return pid == root

    return {pid: title for pid, title in titles.items() if is_ours(pid)}


def listening_addresses(pids: Iterable[int]) -> set[str]:
    """Addresses of the TCP sockets on which these processes listen: IPv4 and IPv6 in hexadecimal, as in /proc."""
    inodes = set()
    for pid in pids:
        for file in Path(f"/proc/{pid}/fd").glob("*"):
            with suppress(OSError):  # closed meanwhile
                inodes.add(file.readlink().name.removeprefix("socket:[").removesuffix("]"))
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == _LISTENS and row[9] in inodes}


def answers(url: str) -> bool:
    """Whether a server answers HTTP at the URL."""
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except (urllib.error.URLError, OSError):
        return False
    return True
