"""Log messages of a command: one line each on stderr, without level or time."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from varve.monitoring.terminal_line import CLEAR_LINE


@contextmanager
def logs_to_stderr() -> Iterator[None]:
    """Write messages of the logger "varve", level INFO or higher, to stderr while the context is open."""
    # The current line of a terminal may be the progress line.
    logger, handler = logging.getLogger("varve"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"{CLEAR_LINE if sys.stderr.isatty() else ''}%(message)s"))
    level, propagates = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates
