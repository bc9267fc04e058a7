"""How far a run is: the one line that shows the counts.

On a terminal the line is live; elsewhere a plain line appears now and then. Somebody who follows a run from afar
(VARVE_FOLLOWED is set) gets more of them, marked, to make them live again. Knows nothing of Ray.
"""

import os
import sys
import time
from collections.abc import Callable
from threading import Event, Thread
from types import TracebackType
from typing import Self

from varve.monitoring.run_counters import Snapshot

_TERMINAL_EVERY_S = 0.5
_PLAIN_EVERY_S = 15.0
_FOLLOWED_EVERY_S = 2.0
MARK = "~ "  # before the lines of a run that is followed


class ProgressLine:
    """Shows snapshots on stderr while a run goes on."""

    def __init__(self, look: Callable[[], Snapshot], done_rows: int, total_rows: int | None) -> None:
        """Prepare the line.

        Args:
            look: takes a snapshot.
            done_rows: rows that earlier runs have committed.
            total_rows: of the source, where known.
        """
        self._look = look
        self._done_rows = done_rows
        self._total_rows = total_rows
        self._terminal = sys.stderr.isatty()
        self._followed = bool(os.environ.get("VARVE_FOLLOWED"))
        self._stopped = Event()
        self._thread = Thread(target=self._run, daemon=True)
        self._first: tuple[float, Snapshot] | None = None

    def __enter__(self) -> Self:
        """Start showing."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, and leave the terminal's line clean."""
        self._stopped.set()
        self._thread.join()
        if self._terminal:
            sys.stderr.write("\r\033[K")

    def _run(self) -> None:
        plain_s = _FOLLOWED_EVERY_S if self._followed else _PLAIN_EVERY_S
        every_s = _TERMINAL_EVERY_S if self._terminal else plain_s
        while not self._stopped.wait(every_s):
            try:
                text = self._text(self._look())
            except Exception:  # noqa: BLE001, S112 (the run itself tells what has gone; a line must not)
                continue
            plain = f"{MARK}{text}\n" if self._followed else f"{text}\n"
            sys.stderr.write(f"\r\033[K{text}" if self._terminal else plain)
            sys.stderr.flush()

    def _text(self, now: Snapshot) -> str:
        if not now.rows:
            return (
                "starting replicas" if not now.replicas else f"{now.replicas} replica(s) ready, first block under way"
            )
        clock = time.monotonic()
        self._first = self._first or (clock, now)
        elapsed_s, since = clock - self._first[0], self._first[1]
        rows = self._done_rows + now.rows
        parts = [f"{rows:,} of {self._total_rows:,} rows" if self._total_rows else f"{rows:,} rows"]
        if elapsed_s > 0 and now.rows > since.rows:
            rows_per_s = (now.rows - since.rows) / elapsed_s
            parts.append(f"{(now.tokens - since.tokens) / elapsed_s:,.0f} tokens/s")
            if self._total_rows and rows < self._total_rows:
                parts.append(f"{clock_time((self._total_rows - rows) / rows_per_s)} left")
        if self._total_rows and rows >= self._total_rows and now.missing_rows:
            parts.append(f"{now.missing_rows:,} rows to write")
        parts.append(f"{now.replicas} replica(s)")
        return " · ".join(parts + ([f"{now.errors:,} error rows"] if now.errors else []))


def clock_time(seconds: float) -> str:
    """72 → 1:12; 3700 → 1:01:40."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def data_size(num_bytes: float) -> str:
    """Bytes for people: 12.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"
