"""Workarounds for defects of datasets and Arrow; each says when it can be removed."""

import atexit
import time
from collections.abc import Iterator
from contextlib import contextmanager

from datasets import config

# What a read that nobody waits for any more may still take.
_LAST_READS_S = 0.5


@contextmanager
def streams_without_torch() -> Iterator[None]:
    """Let `datasets` make its streams without torch: of a stream of torch's kind, every reader would import it.

    That takes a second and 200 MB of each process. Elsewhere in a program `datasets` stays what it is.
    """
    before = config.TORCH_AVAILABLE
    config.TORCH_AVAILABLE = False
    try:
        yield
    finally:
        config.TORCH_AVAILABLE = before


@contextmanager
def ending_calmly() -> Iterator[None]:
    """Give Arrow's reading threads a moment after what is read inside, if the interpreter goes down so soon.

    They hold Python files; one that outlives the interpreter aborts the process, whatever its exit code was to be.
    Remove when apache/arrow#45214 is closed.
    """
    _end_later()
    try:
        yield
    finally:
        _end_later()


def _end_later() -> None:
    atexit.unregister(_wait_until)
    atexit.register(_wait_until, time.monotonic() + _LAST_READS_S)


def _wait_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))
