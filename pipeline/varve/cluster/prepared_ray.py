"""What a local Ray needs before it starts: a machine that can run it, a private folder, and a fork server.

The fork server imports what the workers will need while Ray starts (infra/decisions/0036). Knows nothing of what that
is. Invariant: importing this file does not import Ray.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varve.cluster import worker_launcher
from varve.cluster.auth_token import make_token_private
from varve.cluster.machine_check import check_machine
from varve.cluster.session_folder import SessionFolder, make_session_folder, temporary_folder
from varve.config.compute import Compute

_SOCKET_NAME = "fork"
_NVIDIA_DRIVER = Path("/dev/nvidiactl")
_BACKLOG = 1024  # workers that wait while the modules are imported


@dataclass(frozen=True, slots=True)
class Imports:
    """Names of the modules that workers will need."""

    without_ray: tuple[str, ...] = ()
    with_ray: tuple[str, ...] = ("ray.data",)  # modules that import Ray


NO_IMPORTS = Imports()


@dataclass(frozen=True, slots=True)
class PreparedRay:
    """The folder and the fork server of a Ray that this process is about to start."""

    size: dict[str, Any]  # resources to declare, as arguments of `ray.init`
    folder: SessionFolder
    fork_server: subprocess.Popen[bytes] | None  # None where a forked process is not safe

    @classmethod
    def prepare(cls, compute: Compute, imports: Imports = NO_IMPORTS) -> "PreparedRay":
        """Check the machine, make the folder, and start to import what workers will need.

        Args:
            compute: size of the object store, number of replicas.
            imports: of the workers.

        Raises:
            RunError: this machine lacks what Ray needs.
            OSError: the temporary folder can't be written.
        """
        size = _size(compute)
        check_machine(temporary_folder(), size["num_cpus"], size["object_store_memory"])
        make_token_private()
        folder = make_session_folder()
        try:
            return cls(size, folder, _start_fork_server(folder, imports) if _is_fork_safe() else None)
        except BaseException:
            folder.remove()
            raise

    @contextmanager
    def starts_workers(self) -> Iterator[None]:
        """Let a Ray that is started inside start its workers through the fork server."""
        if self.fork_server is None:
            yield
            return
        from ray._private import ray_constants  # noqa: PLC0415 (private: may be absent in another version)

        # Ray's own script of this name runs workers of another runtime environment, which Varve does not use.
        present = ray_constants.SETUP_WORKER_FILENAME
        ray_constants.SETUP_WORKER_FILENAME = worker_launcher.__file__
        os.environ[worker_launcher.SOCKET] = str(self.folder.path / _SOCKET_NAME)
        try:
            yield
        finally:
            ray_constants.SETUP_WORKER_FILENAME = present
            del os.environ[worker_launcher.SOCKET]

    def wait(self) -> None:
        """Wait until workers can be forked; without a fork server Ray starts them."""
        if self.fork_server and self.fork_server.stdout:
            self.fork_server.stdout.read(1)

    def end(self) -> None:
        """End the fork server, and remove the folder."""
        if self.fork_server:
            self.fork_server.kill()
            self.fork_server.wait()
        self.folder.remove()


def _is_fork_safe() -> bool:
    """Whether a forked process can use everything that its parent has imported: system frameworks of macOS can't.

    CUDA can't be used after a fork if anything imported has touched it; no machine with a GPU was tried yet.
    """
    return sys.platform.startswith("linux") and not _NVIDIA_DRIVER.exists()


def _start_fork_server(folder: SessionFolder, imports: Imports) -> subprocess.Popen[bytes]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder.path / _SOCKET_NAME))
        listener.listen(_BACKLOG)
        # -P keeps the current folder off sys.path.
        command = [sys.executable, "-P", "-m", "varve.cluster.fork_server", str(listener.fileno())]
        return subprocess.Popen(  # noqa: S603 (no input of the user)
            [*command, ",".join(imports.without_ray), ",".join(imports.with_ray)],
            stdin=subprocess.PIPE,  # ends with this process, which ends the server
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
            start_new_session=True,  # signals of the terminal are for this process, which ends Ray
        )


def _size(compute: Compute) -> dict[str, Any]:
    """A job may ask for more replicas than there are cores."""
    replicas = compute.replicas if isinstance(compute.replicas, int) else 1
    object_store_bytes = compute.object_store_bytes
    return {
        "num_cpus": max(os.cpu_count() or 1, replicas + 1),
        "object_store_memory": None if object_store_bytes == "auto" else object_store_bytes,
    }
