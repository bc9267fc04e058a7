"""A process that imports once what workers need, and forks a worker for each command line that Ray starts.

Started by `prepared_ray.py`, asked by `worker_launcher.py`. Importing torch, transformers and Ray takes seconds of a
core; a forked worker has them after milliseconds, and shares their memory with the others. Knows nothing of what a
worker does. Invariants: it runs nothing but imports, so its only threads are those of OpenBLAS and jemalloc, which
handle a fork; it ends when the process that started it ends; a worker that has left Python ends.
"""

import atexit
import gc
import json
import os
import resource
import runpy
import select
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from varve.process_state import import_without_gc

_CHUNK_BYTES = 1 << 16


def main(listener_fd: int, modules: Sequence[str], ray_modules: Sequence[str]) -> None:
    """Import the modules, write one byte to stdout, then fork workers until stdin ends.

    Args:
        listener_fd: a socket that listens.
        modules: names of modules without Ray; one that cannot be imported is left to the workers, which report it.
        ray_modules: likewise, of modules that import Ray.
    """
    atexit.register(_end)  # before all others, so it runs after them
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system removes workers that have ended
    with socket.socket(fileno=listener_fd) as listener:
        _import(modules)
        os.write(1, b"\0")
        request = _serve(listener, ray_modules)
    if request:
        _become_worker(*request)


def _import(modules: Sequence[str]) -> None:
    for name in modules:
        with suppress(Exception):
            import_without_gc(name)
    gc.freeze()  # later collections would write to all pages, and end their sharing


def _serve(listener: socket.socket, ray_modules: Sequence[str]) -> tuple[dict[str, Any], Sequence[int]] | None:
    """Fork for each request; returns None in the server, and in a worker (its request, its standard streams).

    Ray keeps the environment that it sees when it is imported, with the id of the job. So it is imported with that of
    the first worker, and a worker with another one is not forked.
    """
    of_ray: dict[str, str] | None = None
    while True:
        ready, _, _ = select.select([listener, 0], [], [])
        if 0 in ready:
            return None
        client, _ = listener.accept()
        with client, suppress(OSError, ValueError):
            _, streams, _, _ = socket.recv_fds(client, 1, 3)
            request = json.loads(_receive_all(client))
            needed = {name: value for name, value in request["environment"].items() if name.startswith("RAY_")}
            if of_ray is None:
                os.environ.update(of_ray := needed)
                _import(ray_modules)
            if needed == of_ray and not _has_ended(client):
                if os.fork() == 0:
                    return request, streams
                client.sendall(b"\0")
            for stream in streams:
                os.close(stream)


def _has_ended(client: socket.socket) -> bool:
    """Whether Ray has ended the launcher, which waits here while modules are imported."""
    poll = select.poll()
    poll.register(client, 0)  # POLLHUP is always reported
    return bool(poll.poll(0))


def _receive_all(client: socket.socket) -> bytes:
    received = b""
    while chunk := client.recv(_CHUNK_BYTES):
        received += chunk
    return received


def _become_worker(request: dict[str, Any], streams: Sequence[int]) -> None:
    """Take over what the worker would have inherited from Ray, and run its script."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    os.setpgid(0, 0)  # Ray kills the process group of a worker that ends
    os.nice(request["niceness"] - os.nice(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, request["max_files"])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked_signals"])
    if numpy := sys.modules.get("numpy"):  # all workers would draw the same numbers
        numpy.random.seed()
    sys.argv = request["command"]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _end() -> None:
    """End this process without the exit handlers of C++ libraries. Its exit code is not read.

    Ray's handler destroys an event loop under its lock. A message of the worker that is still queued there posts to the
    same loop when it is destroyed, and waits for this lock forever: the worker would keep its memory.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), *(names.split(",") for names in sys.argv[2:4]))
