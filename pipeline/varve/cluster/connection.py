"""The connection to Ray: a cluster that is joined, or a local Ray that is started.

Knows nothing of parts, models or placement. Invariants: importing this file imports neither torch nor transformers; no
folder of the driver is on a worker's `sys.path`, so no file of the current folder shadows a module there.
"""

import atexit
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import current_thread, main_thread
from typing import Any

import ray
from ray.job_config import JobConfig
from tenacity import Retrying, stop_after_attempt

from varve.config.compute import Compute
from varve.errors import RunError, one_line

# Ray gives its node 30 s to start, a constant of Ray; a busy machine needs more attempts.
_MAX_STARTS = 3


class _NoDriverPaths(JobConfig):
    """A job whose workers do not get the driver's folders on their `sys.path`.

    Ray adds the driver's current folder and the folder of its script, unless the job brings a working directory. A
    `tokenize.py` or `code.py` there would shadow the standard library in every worker.
    """

    def _runtime_env_has_working_dir(self) -> bool:
        return True


def start_ray(compute: Compute) -> None:
    """Join the cluster at RAY_ADDRESS, or start a local Ray with room for the replicas.

    Raises:
        RunError: no Ray answers at RAY_ADDRESS, it wants a token, or it has another version.
    """
    if ray.is_initialized():
        return
    sigterm_handler = signal.getsignal(signal.SIGTERM)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "job_config": _NoDriverPaths()}
    with _silenced_stderr():
        try:
            if os.environ.get("RAY_ADDRESS"):
                ray.init(address="auto", **options)
            else:
                _start_local(_size(compute) | options)
            # Called before Ray's own handler, which waits half a second for output of workers that Varve does not show.
            atexit.register(leave_ray)
        except Exception as e:  # Ray raises no narrower type for a node that does not start in time
            address = os.environ.get("RAY_ADDRESS", "this machine")
            msg = f"could not connect to Ray at {address}: {one_line(e, 300)}"
            raise RunError(msg) from e
        finally:
            # Ray installs a handler that ends the process with the signal's number as its exit code.
            if current_thread() is main_thread():
                signal.signal(signal.SIGTERM, sigterm_handler or signal.SIG_DFL)


def leave_ray() -> None:
    """Disconnect from Ray, and end the processes that this one started for it.

    The autoscaler's monitor goes first: Ray ends it after the server that it polls, and then waits a second for it.
    """
    _end_process("monitor")
    ray.shutdown()


def _start_local(options: dict[str, Any]) -> None:
    # address="local": never joins a cluster that is already running on this machine.
    Retrying(stop=stop_after_attempt(_MAX_STARTS), reraise=True)(
        ray.init, address="local", include_dashboard=False, **options
    )
    # It reads the output of workers for drivers to show; Varve shows none of it.
    _end_process("log_monitor")


def _end_process(name: str) -> None:
    """End one of the processes that this one started for Ray; after joining a cluster there is none."""
    with suppress(ImportError, AttributeError):  # Ray has no public API for it
        from ray._private.worker import _global_node  # noqa: PLC0415 (its value when called)

        if _global_node is not None:
            getattr(_global_node, f"kill_{name}")(check_alive=False)


def _size(compute: Compute) -> dict[str, Any]:
    """Resources that a local Ray declares; a job may ask for more replicas than there are cores."""
    replicas = compute.replicas if isinstance(compute.replicas, int) else 1
    object_store_bytes = compute.object_store_bytes
    return {
        "num_cpus": max(os.cpu_count() or 1, replicas + 1),
        "object_store_memory": None if object_store_bytes == "auto" else object_store_bytes,
    }


@contextmanager
def _silenced_stderr() -> Iterator[None]:
    """Hide what Ray's C++ code writes to stderr while it starts."""
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)
