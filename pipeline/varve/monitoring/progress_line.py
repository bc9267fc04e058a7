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

from varve.monitoring.arrival_rate import ArrivalRate
from varve.monitoring.run_counters import Snapshot
from varve.monitoring.terminal_line import CLEAR_LINE, SEPARATOR, update_line

logger = logging.getLogger(__name__)

_TERMINAL_INTERVAL_S = 0.5
_PLAIN_INTERVAL_S = 15.0
_FOLLOWED_INTERVAL_S = 2.0
MARK = "~ "  # starts each line of a run that is followed


class ProgressText:
    """The content of the line: the most important figures first, because a narrow terminal shows only these."""

    def __init__(self, committed_rows: int, total_rows: int | None) -> None:
        """Prepare the text; the arguments are those of `ProgressLine`."""
        self._committed_rows = committed_rows
        self._total_rows = total_rows
        self._rate = ArrivalRate()

    def describe(self, now: Snapshot, clock_s: float) -> str:
        """The text for a snapshot that was taken at `clock_s`."""
        if not now.rows:
            return f"{now.replicas} replica(s) ready, encoding the first block" if now.replicas else "starting replicas"
        self._rate.observe(clock_s, {number: replica.tokens for number, replica in now.by_replica.items()})
        rows, speed = self._committed_rows + now.rows, self._rate.tokens_per_s(clock_s)
        failed = [f"{now.errors:,} failed rows"] if now.errors else []
        tokens = [f"{speed:,.0f} tokens/s"] if speed else []
        if not self._total_rows:
            figures = [f"{rows:,} rows", *failed]
        else:
            left, counts = self._left(now, rows, clock_s), f"{rows:,} of {self._total_rows:,} rows"
            figures = [f"{100 * rows // self._total_rows}%", *left, counts, *failed]
        return SEPARATOR.join([*figures, *tokens, f"{now.replicas} replica(s)"])

    def _left(self, now: Snapshot, rows: int, clock_s: float) -> list[str]:
        """What the run still does: so many seconds of encoding, or rows to write."""
        rows_left = (self._total_rows or 0) - rows
        if rows_left <= 0:
            return [f"{now.missing_rows:,} rows to write"] if now.missing_rows else []
        seconds = self._rate.seconds_left(clock_s, rows_left * now.tokens / now.rows)
        return [] if seconds is None else [f"{clock_time(seconds)} left"]


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
        self._text = ProgressText(committed_rows, total_rows)
        self._stream = stream
        self._is_terminal = stream is not None and stream.isatty()
        self._is_followed = bool(os.environ.get("VARVE_FOLLOWED"))
        self._stopped = Event()
        self._thread = Thread(target=self._run, daemon=True)

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
            self._stream.write(CLEAR_LINE)

    def _run(self) -> None:
        plain_s = _FOLLOWED_INTERVAL_S if self._is_followed else _PLAIN_INTERVAL_S
        interval_s = _TERMINAL_INTERVAL_S if self._is_terminal else plain_s
        while not self._stopped.wait(interval_s):
            try:
                text = self._text.describe(self._take_snapshot(), time.monotonic())
            except Exception:  # noqa: BLE001, S112 (the run itself reports what failed)
                continue
            self._show(text)

    def _show(self, text: str) -> None:
        if self._stream is None:
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
