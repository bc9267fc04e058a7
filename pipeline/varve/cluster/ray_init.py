"""`ray.init` for a driver of Varve's own: quiet, and without what it changes in the process or passes to workers.

Knows neither whether Ray is joined or started nor what runs on it. Invariant: no folder of the driver is on a worker's
`sys.path`, so no file of the current folder shadows a module there.
"""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from typing import Any

import ray
from ray.job_config import JobConfig


class _NoDriverPaths(JobConfig):
    """A job whose workers do not get the driver's folders on their `sys.path`.

    Ray adds the driver's current folder and the folder of its script, unless the job brings a working directory. A
    `tokenize.py` or `code.py` there would shadow the standard library in every worker.
    """

    def _runtime_env_has_working_dir(self) -> bool:
        return True


def init(**options: Any) -> None:
    """Call `ray.init` with these options.

    Raises:
        Exception: Ray's own, which has no narrower type if a node does not start in time.
    """
    with _silenced_stderr(), _kept_sigterm_handler():
        ray.init(log_to_driver=False, logging_level=logging.ERROR, job_config=_NoDriverPaths(), **options)


@contextmanager
def _kept_sigterm_handler() -> Iterator[None]:
    """Restore the handler that Ray replaces, and pass it a signal that arrived meanwhile.

    Ray's handler ends the process with the signal's number as its exit code.
    """
    if current_thread() is not main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
    try:
        yield
    except SystemExit as e:
        if e.code == signal.SIGTERM:
            signal.signal(signal.SIGTERM, handler)
            signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, handler)


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
