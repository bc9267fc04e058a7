"""The progress line of a run, and how durations and sizes are written.

On a terminal the line is updated in place; in a file a new line appears every 15 s. If `varve submit` follows the run
(VARVE_FOLLOWED is set), lines come more often and carry a mark, so that the follower can update its own line. Without a
stream, progress is logged. Knows nothing of Ray.
"""

import logging
import os
import time
from collections.abc import Callable
from threading import Event, Thread
from types import TracebackType
from typing import Self, TextIO

from varve.monitoring.run_counters import Snapshot

logger = logging.getLogger(__name__)

_TERMINAL_INTERVAL_S = 0.5
_PLAIN_INTERVAL_S = 15.0
_FOLLOWED_INTERVAL_S = 2.0
MARK = "~ "  # starts each line of a run that is followed
_CLEAR_LINE = "\r\033[K"


class ProgressLine:
    """Shows snapshots while it is entered."""

    def __init__(
        self,
        take_snapshot: Callable[[], Snapshot],
        committed_rows: int,
        total_rows: int | None,
        stream: TextIO | None,
    ) -> None:
        """Prepare the line.

        Args:
            take_snapshot: returns the counters of the run.
            committed_rows: rows that earlier runs have committed.
            total_rows: rows of the source, if known.
            stream: where the line appears; None logs it.
        """
        self._take_snapshot = take_snapshot
        self._committed_rows = committed_rows
        self._total_rows = total_rows
        self._stream = stream
        self._is_terminal = stream is not None and stream.isatty()
        self._is_followed = bool(os.environ.get("VARVE_FOLLOWED"))
        self._stopped = Event()
        self._thread = Thread(target=self._run, daemon=True)
        self._first: tuple[float, Snapshot] | None = None

    def __enter__(self) -> Self:
        """Start."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, and clear the line of a terminal."""
        self._stopped.set()
        self._thread.join()
        if self._stream and self._is_terminal:
            self._stream.write(_CLEAR_LINE)

    def _run(self) -> None:
        plain_s = _FOLLOWED_INTERVAL_S if self._is_followed else _PLAIN_INTERVAL_S
        interval_s = _TERMINAL_INTERVAL_S if self._is_terminal else plain_s
        while not self._stopped.wait(interval_s):
            try:
                text = self._text(self._take_snapshot())
            except Exception:  # noqa: BLE001, S112 (the run itself reports what failed)
                continue
            self._show(text)

    def _show(self, text: str) -> None:
        if self._stream is None:
            logger.info(text)
            return
        plain = f"{MARK}{text}\n" if self._is_followed else f"{text}\n"
        self._stream.write(f"{_CLEAR_LINE}{text}" if self._is_terminal else plain)
        self._stream.flush()

    def _text(self, now: Snapshot) -> str:
        if not now.rows:
            return f"{now.replicas} replica(s) ready, encoding the first block" if now.replicas else "starting replicas"
        clock = time.monotonic()
        self._first = self._first or (clock, now)
        elapsed_s, first = clock - self._first[0], self._first[1]
        rows = self._committed_rows + now.rows
        parts = [f"{rows:,} of {self._total_rows:,} rows" if self._total_rows else f"{rows:,} rows"]
        if elapsed_s > 0 and now.rows > first.rows:
            rows_per_s = (now.rows - first.rows) / elapsed_s
            parts.append(f"{(now.tokens - first.tokens) / elapsed_s:,.0f} tokens/s")
            if self._total_rows and rows < self._total_rows:
                parts.append(f"{clock_time((self._total_rows - rows) / rows_per_s)} left")
        if self._total_rows and rows >= self._total_rows and now.missing_rows:
            parts.append(f"{now.missing_rows:,} rows to write")
        parts.append(f"{now.replicas} replica(s)")
        return " · ".join(parts + ([f"{now.errors:,} error rows"] if now.errors else []))


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
