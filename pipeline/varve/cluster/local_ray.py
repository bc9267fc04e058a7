"""A Ray of this process's own, which serves no other program.

It listens on the loopback interface only, in a folder that only this user can read, and ends with this process. Knows
nothing of parts, models or placement. Invariant: no call here waits in Ray's C++ code without a limit, so a signal
always ends the start.
"""

import atexit
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from tenacity import Retrying, retry_if_exception, stop_after_attempt

from varve.cluster.prepared_ray import PreparedRay
from varve.cluster.ray_init import init
from varve.errors import RunError, one_line

# Ray gives its node 30 s to start, a constant of Ray; a busy machine needs more attempts.
_MAX_STARTS = 3
# Until the first worker is ready. An idle machine needs half a second.
WORKER_START_S = 40.0
_SYSTEM_CONFIG = {
    # Otherwise the driver waits for the first workers in C++ code, for ever if they die, and no signal ends that.
    "prestart_worker_first_driver": False,
    # Ray ends a worker that has not registered by then; the first ones wait for the imports of the fork server.
    "worker_register_timeout_seconds": 180,
    # No events of tasks are collected: only a dashboard reads them, and a long run fills the head's memory with them.
    "task_events_report_interval_ms": 0,
}
_SHOWN_LINES = 3
# How lines begin that Ray itself writes to the stderr of healthy processes.
_LOG_LINE, _WORKER_MARK = "[", ":"
# (the last frame, the error)
_TRACEBACK = re.compile(r"^Traceback .*\n(?:  .*\n)*?((?:  .*\n){1,2})(\S.*)", re.MULTILINE)


def start_local_ray(prepared: PreparedRay, worker_start_s: float = WORKER_START_S) -> Callable[[], None]:
    """Start Ray, which starts its first workers.

    Args:
        prepared: its size, its folder and its fork server, which end with it.
        worker_start_s: seconds to wait for the first worker.

    Returns:
        What waits until a worker is ready; it ends Ray and raises RunError if none is within `worker_start_s`.

    Raises:
        RunError: a process that Ray starts ends with an error.
        Exception: Ray's own, which has no narrower type: its node does not start in time.
    """
    try:
        _start(prepared)
        task = ray.remote(num_cpus=0)(_answer)
        answers = [task.remote() for _ in range(prepared.size["num_cpus"])]
    except BaseException:
        end_local_ray(prepared)
        raise
    # Called before Ray's own handler, which waits half a second for output of workers that Varve does not show.
    atexit.register(end_local_ray, prepared)

    def wait() -> None:
        try:
            _wait_for_worker(prepared, answers, worker_start_s)
        except BaseException:
            atexit.unregister(end_local_ray)
            end_local_ray(prepared)
            raise

    return wait


def end_local_ray(prepared: PreparedRay) -> None:
    """End the processes that this one started for Ray, and remove their folder."""
    ray.shutdown()
    prepared.end()


def _start(prepared: PreparedRay) -> None:
    folder = prepared.folder.of_ray
    # address="local": never joins a cluster that is already running on this machine.
    options = {"address": "local", "include_dashboard": False, "_temp_dir": str(folder)}
    attempts = Retrying(
        stop=stop_after_attempt(_MAX_STARTS),
        # A process that ends with a Python error does so again; without one the machine was too busy.
        retry=retry_if_exception(lambda error: isinstance(error, Exception) and not _first_traceback(_output(folder))),
        reraise=True,
    )
    try:
        with _on_loopback(), _only_needed_processes(), prepared.starts_workers():
            attempts(init, _system_config=_SYSTEM_CONFIG, **options, **prepared.size)
    except Exception as e:  # Ray raises no narrower type for a node that does not start in time
        if output := _last_output(folder):
            msg = f"Ray does not start: {one_line(e)} {_advice(output)}"
            raise RunError(msg) from e
        raise


def _answer() -> None:
    """Run as a task: the worker has started."""


def _wait_for_worker(prepared: PreparedRay, answers: Sequence[Any], timeout_s: float) -> None:
    """Wait until the first worker has run a task; the others are ready for the run by then or soon.

    Raises:
        RunError: none has within `timeout_s`, or Ray ended.
    """
    prepared.wait()
    try:
        ready, _ = ray.wait(list(answers), timeout=timeout_s)
        ray.get(ready)
    except RayError as e:
        advice = _advice(_last_output(prepared.folder.of_ray))
        msg = f"Ray ended while its workers started: {one_line(e)} Run the same command again. {advice}"
        raise RunError(msg) from e
    if ready:
        return
    advice = _advice(_last_output(prepared.folder.of_ray))
    msg = f"Ray's workers do not start: none was ready within {timeout_s:.0f} s. {advice}"
    raise RunError(msg)


def _advice(output: Sequence[str]) -> str:
    advice = (
        f"Its processes run {sys.executable} with the environment of this command: check PYTHONPATH (a "
        "sitecustomize.py in it runs in each of them), the limits of `ulimit -a` and the free memory."
    )
    return f"{advice} The last lines of their output:\n  " + "\n  ".join(output) if output else advice


def _last_output(folder: Path) -> list[str]:
    """The end of the first traceback that a process of Ray wrote to stderr, or of other output there."""
    written = _output(folder)
    lines = [line for line in written.splitlines() if line.strip() and not line.startswith((_LOG_LINE, _WORKER_MARK))]
    return _first_traceback(written) or lines[-_SHOWN_LINES:]


def _first_traceback(written: str) -> list[str]:
    """The last frame and the error of the first Python traceback; empty if there is none."""
    found = _TRACEBACK.search(written)
    return [*found[1].splitlines(), found[2]] if found else []


def _output(folder: Path) -> str:
    """What Ray's processes wrote to stderr; healthy ones write only marks and log lines.

    Workers share the stderr of the raylet until they are ready.
    """
    return "\n".join(log.read_text(errors="replace") for log in sorted(folder.glob("session_2*/logs/*.err")))


@contextmanager
def _only_needed_processes() -> Iterator[None]:
    """Let Ray start no dashboard, no autoscaler and no reader of the workers' output, which it has no argument for.

    They would take two seconds of CPU from the start of the run. The agent of the node serves the metrics.
    """
    from ray._private import parameter, services  # noqa: PLC0415 (private: may be absent in another version)

    parameters, start_dashboard = parameter.RayParams, services.start_api_server
    options: dict[str, Any] = {"no_monitor": True, "include_log_monitor": False}
    parameter.RayParams = partial(parameters, **options)
    services.start_api_server = lambda *_, **__: ("", None)  # (its address, its process)
    try:
        yield
    finally:
        parameter.RayParams, services.start_api_server = parameters, start_dashboard


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let Ray take 127.0.0.1 as the address of this node, as it does by default on macOS and Windows.

    Each of its processes then listens there only; with another address they listen on all interfaces. `ray.init` has no
    argument for it: it replaces a loopback address by the machine's.
    """
    from ray._private import ray_constants  # noqa: PLC0415 (private: may be absent in another version)

    present = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = present
