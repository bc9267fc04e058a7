"""A server of a store that is killed and started again; its command line identifies it below this command."""

import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.servers.processes import answers, descendants, end, start
from tests.waiting import wait_until


class ServerProcess:
    """The process of a server at an endpoint.

    Args:
        running: ends the server when it ends.
        is_server: whether a command line is that of the server.
        endpoint: at which it answers.
        log: of its output.
    """

    def __init__(self, running: ExitStack, is_server: Callable[[bytes], bool], endpoint: str, log: Path) -> None:
        self._running, self._is_server, self._endpoint, self._log = running, is_server, endpoint, log

    @property
    def pid(self) -> int:
        return next(pid for pid, title in descendants().items() if self._is_server(title))

    def restart(self) -> None:
        """SIGKILL, then the same command again; returns when it answers."""
        process = Path(f"/proc/{self.pid}")
        command = (process / "cmdline").read_bytes().decode().rstrip("\0").split("\0")
        variables = (process / "environ").read_bytes().decode().split("\0")
        environment = dict(variable.split("=", 1) for variable in variables if "=" in variable)
        folder = (process / "cwd").readlink()
        os.kill(int(process.name), signal.SIGKILL)
        wait_until(lambda: not _lives(process), "the end of a server")
        started: list[subprocess.Popen] = [start(command, self._log, env=environment, cwd=folder)]
        self._running.callback(end, started)
        wait_until(lambda: answers(self._endpoint), "a server", self._log)


def _lives(process: Path) -> bool:
    """Whether a process has a command line: one that has ended has none, until it is waited for."""
    try:
        return bool((process / "cmdline").read_bytes())
    except OSError:
        return False
