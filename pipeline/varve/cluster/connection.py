"""The Ray that a run stands on, joined or started.

Knows nothing of parts, models or how work is spread. Invariant: importing this file brings neither torch nor
transformers.
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
from tenacity import Retrying, stop_after_attempt

from varve.config.compute import Compute
from varve.errors import RunError, one_line

_STARTS = 3


def start_ray(compute: Compute) -> None:
    """Connect to a running Ray, or start one here with room for the replicas.

    Raises:
        RunError: the Ray at RAY_ADDRESS is not there, wants a token, or is of another version.
    """
    if ray.is_initialized():
        return
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    before = signal.getsignal(signal.SIGTERM)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with _silenced_stderr():
        try:
            if os.environ.get("RAY_ADDRESS"):
                ray.init(address="auto", **quiet)
            else:
                _start_own(_size(compute) | quiet)
            # Before Ray's own, which first waits half a second for what workers print: nothing of it is shown.
            atexit.register(leave_ray)
        except Exception as e:  # a node that does not come up in time raises no narrower one
            where = os.environ.get("RAY_ADDRESS", "this machine")
            msg = f"Ray at {where} could not be joined: {one_line(e)}"
            raise RunError(msg) from e
        finally:
            # Ray puts its own in place, which ends the process with the signal's number for an exit code.
            if current_thread() is main_thread():
                signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def leave_ray() -> None:
    """Part from Ray, and end what this process has started of it.

    Ray ends the monitor of its autoscaler after the server that this one asks, so that it hears of no signal and is
    given up after a second. It goes first here: nothing is scaled any more.
    """
    _end("monitor")
    ray.shutdown()


def _start_own(options: dict[str, Any]) -> None:
    """Start a Ray here. Its node has 30 s to come up, a constant of Ray's: a busy machine needs more tries."""
    # "local": a cluster that somebody else has started on this machine is not ours to take.
    Retrying(stop=stop_after_attempt(_STARTS), reraise=True)(
        ray.init, address="local", include_dashboard=False, **options
    )
    # It reads what workers print, all the time, for drivers to show: nothing of it is shown.
    _end("log_monitor")


def _end(process: str) -> None:
    """End one of the processes that this one has started for Ray; one that joined a Ray has started none."""
    with suppress(ImportError, AttributeError):  # Ray has no public place for it
        from ray._private.worker import _global_node  # noqa: PLC0415 (as it is now)

        if _global_node is not None:
            getattr(_global_node, f"kill_{process}")(check_alive=False)


def _size(compute: Compute) -> dict[str, Any]:
    """What a Ray of our own declares: more replicas than cores are the user's wish."""
    replicas = compute.replicas if isinstance(compute.replicas, int) else 1
    store = compute.object_store_bytes
    return {
        "num_cpus": max(os.cpu_count() or 1, replicas + 1),
        "object_store_memory": None if store == "auto" else store,
    }


@contextmanager
def _silenced_stderr() -> Iterator[None]:
    """Keep what Ray's C++ side writes to stderr while it starts out of the user's terminal."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
