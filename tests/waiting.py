"""How long tests wait for other processes.

The limits are generous, so that a slow or busy machine fails no test; they only end a test that would hang.
"""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE_S = 120  # for one event
RUN_S = 400  # for a whole command in its own process, or an event in the middle of one


def wait_until(
    ready: Callable[[], object],
    what: str,
    log: Path | None = None,
    alive: subprocess.Popen | None = None,
    timeout_s: float = PATIENCE_S,
) -> None:
    """Poll until a condition holds.

    Args:
        ready: the condition.
        what: its description, for the error.
        log: file whose end is shown in the error.
        alive: the process that brings it about.
        timeout_s: seconds to wait.

    Raises:
        TimeoutError: the condition does not hold within `timeout_s`.
        AssertionError: the process ended first.
    """
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert alive is None or alive.poll() is None, (what, alive.communicate())
        if time.monotonic() > deadline:
            shown = log.read_text(errors="replace")[-2000:] if log else ""
            msg = f"{what}: not within {timeout_s} s\n{shown}"
            raise TimeoutError(msg)
        time.sleep(0.1)
