"""Log messages of a command: one line each on stderr, without level or time."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_CLEAR_LINE = "\r\033[K"  # clears a terminal's progress line, which may be the current line


@contextmanager
def logs_to_stderr() -> Iterator[None]:
    """Write messages of the logger "varve", level INFO or higher, to stderr while the context is open."""
    logger, handler = logging.getLogger("varve"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"{_CLEAR_LINE if sys.stderr.isatty() else ''}%(message)s"))
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
