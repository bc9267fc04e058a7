"""The script that Ray runs to start a worker: asks the fork server for it, or becomes the worker itself.

Imports nothing but built-in parts of Python, since each worker waits for it. Knows only the socket's path, which is in
its environment. Invariant: without a fork server that answers, the worker starts as Ray would start it.
"""

import json
import os
import resource
import signal
import socket
import sys

SOCKET = "VARVE_FORK_SERVER"  # environment variable: path of the server's socket

_FOR_SETUP = ("-S", "-s", "--language=", "--serialized-runtime-env-context=")


def main() -> None:
    """Start the worker of this command line: [script of Ray, its arguments]."""
    # Ray's own script in this place takes these arguments, of which Varve's workers need none.
    command = [argument for argument in sys.argv[1:] if not argument.startswith(_FOR_SETUP)]
    if not _fork(command):
        os.execv(sys.executable, [sys.executable, *command])  # noqa: S606 (the command is Ray's)


def _fork(command: list[str]) -> bool:
    """Pass the command line to the server with all that a process inherits; returns whether it forked a worker."""
    request = {
        "command": command,
        "environment": dict(os.environ),
        "folder": os.getcwd(),  # noqa: PTH109 (importing pathlib takes longer)
        "niceness": os.nice(0),
        "blocked_signals": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "max_files": resource.getrlimit(resource.RLIMIT_NOFILE),
    }
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(os.environ[SOCKET])
            socket.send_fds(server, [b"\0"], [0, 1, 2])
            server.sendall(json.dumps(request).encode())
            server.shutdown(socket.SHUT_WR)
            return bool(server.recv(1))
    except (OSError, KeyError):
        return False


if __name__ == "__main__":
    main()
