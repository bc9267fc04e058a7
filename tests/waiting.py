"""How long a test waits for what another process does, before it calls it a failure.

No measure of speed: long enough for a machine that does much else, so that only what would never come is told.
"""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE_S = 600


def wait_until(
    ready: Callable[[], object], what: str, log: Path | None = None, alive: subprocess.Popen | None = None
) -> None:
    """Poll until something is so; `alive` is the process that brings it about, `log` what it writes.

    Raises:
        TimeoutError: it was not in time.
        AssertionError: the process ended before.
    """
    deadline = time.monotonic() + PATIENCE_S
    while not ready():
        assert alive is None or alive.poll() is None, (what, alive.communicate())
        if time.monotonic() > deadline:
            told = log.read_text(errors="replace")[-2000:] if log else ""
            msg = f"{what}: not within {PATIENCE_S} s\n{told}"
            raise TimeoutError(msg)
        time.sleep(0.1)
