"""The progress line of a run, and how durations and sizes are written.

On a terminal and in a notebook the line is updated in place; in a file a new line appears every minute. If `varve
submit` follows the run (VARVE_FOLLOWED is set), lines come more often and carry a mark, so that the follower can update
its own line. Without a stream and outside of a notebook, progress is logged. Knows nothing of Ray or of what the line
says.
"""

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Thread
from types import TracebackType
from typing import Protocol, Self, TextIO

from varve.monitoring.notebook_line import NotebookLine
from varve.monitoring.run_counters import Snapshot
from varve.monitoring.terminal_line import CLEAR_LINE, update_line

logger = logging.getLogger(__name__)

_TERMINAL_INTERVAL_S = 0.5
_NOTEBOOK_INTERVAL_S = 1.0
_PLAIN_INTERVAL_S = 60.0
_FOLLOWED_INTERVAL_S = 2.0
MARK = "~ "  # starts each line of a run that is followed


class Text(Protocol):
    """What the line says."""

    def describe(self, now: Snapshot, clock_s: float) -> str:
        """The text for a snapshot that was taken at `clock_s`."""
        ...

    def share(self, now: Snapshot) -> float | None:
        """Share of the run that is done, 0 to 1; None if it is not known."""
        ...


class ProgressLine:
    """Shows snapshots while it is entered."""

    def __init__(self, take_snapshot: Callable[[], Snapshot], text: Text, stream: TextIO | None) -> None:
        """Prepare the line.

        Args:
            take_snapshot: returns the counters of the run.
            text: describes a snapshot.
            stream: where the line appears; None shows it in the notebook's cell, or logs it outside of a notebook.
        """
        self._take_snapshot, self._text, self._stream = take_snapshot, text, stream
        self._notebook: NotebookLine | None = None
        self._is_terminal = stream is not None and stream.isatty()
        self._is_followed = bool(os.environ.get("VARVE_FOLLOWED"))
        self._stopped = Event()
        self._thread = Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        """Start."""
        self._notebook = NotebookLine.in_notebook() if self._stream is None else None
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, and clear the line of a terminal."""
        self._stopped.set()
        self._thread.join()
        if self._stream and self._is_terminal:
            self._stream.write(CLEAR_LINE)

    def _run(self) -> None:
        plain_s = _FOLLOWED_INTERVAL_S if self._is_followed else _PLAIN_INTERVAL_S
        interval_s = _TERMINAL_INTERVAL_S if self._is_terminal else _NOTEBOOK_INTERVAL_S if self._notebook else plain_s
        while not self._stopped.wait(interval_s):
            self._update()
        if self._notebook:  # the cell keeps what is shown last
            self._update()

    def _update(self) -> None:
        with suppress(Exception):  # the run itself reports what failed
            now = self._take_snapshot()
            self._show(self._text.describe(now, time.monotonic()), self._text.share(now))

    def _show(self, text: str, share: float | None) -> None:
        if self._notebook:
            self._notebook.update(text, share)
        elif self._stream is None:
            logger.info(text)
        elif self._is_terminal:
            update_line(self._stream, text)
        else:
            self._stream.write(f"{MARK}{text}\n" if self._is_followed else f"{text}\n")
            self._stream.flush()


def clock_time(seconds: float) -> str:
    """Write a duration: 72 → 1:12; 3700 → 1:01:40."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def data_size(num_bytes: float) -> str:
    """Write a number of bytes: 12_300_000 → 12.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"
