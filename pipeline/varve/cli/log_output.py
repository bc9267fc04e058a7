"""Where a command's log messages go: to stderr, one plain line each."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_CLEAR_LINE = "\r\033[K"  # the progress line of a terminal may be on the present line


class _StderrHandler(logging.Handler):
    """Writes the message alone to the present sys.stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        clear = _CLEAR_LINE if sys.stderr.isatty() else ""
        sys.stderr.write(f"{clear}{record.getMessage()}\n")
        sys.stderr.flush()


@contextmanager
def logs_to_stderr() -> Iterator[None]:
    """Show the messages of the logger "varve", from INFO on, until the context ends."""
    logger, handler = logging.getLogger("varve"), _StderrHandler()
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
