"""A line of a terminal that is updated in place, and that is never longer than the terminal is wide."""

import os
from typing import TextIO

CLEAR_LINE = "\r\033[K"
SEPARATOR = " · "
_DEFAULT_COLUMNS = 80


def update_line(stream: TextIO, text: str) -> None:
    """Replace the current line of a terminal; an empty text clears it.

    Args:
        stream: a terminal.
        text: parts with `SEPARATOR` between them, the most important first; the last ones are left out if the terminal
            is too narrow at this moment.
    """
    stream.write(f"{CLEAR_LINE}{fit(text, _columns(stream))}")
    stream.flush()


def fit(text: str, columns: int) -> str:
    """The parts of a text that fit into a line; the first one is cut if even it does not fit.

    The last column stays empty, since some terminals begin a new line once it is written.
    """
    room = max(columns - 1, 1)
    parts = text.split(SEPARATOR)
    while len(parts) > 1 and len(SEPARATOR.join(parts)) > room:
        parts.pop()
    line = SEPARATOR.join(parts)
    return line if len(line) <= room else f"{line[: room - 1]}…"


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or _DEFAULT_COLUMNS
    except (OSError, ValueError):
        return _DEFAULT_COLUMNS
