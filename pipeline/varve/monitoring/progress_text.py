"""What the progress line of a run says: the most important figures first, because a narrow terminal shows only these.

Pure: snapshots and the clock are arguments. Knows nothing of Ray or of where the line appears.
"""

from collections import deque
from collections.abc import Mapping

from varve.monitoring import bottleneck
from varve.monitoring.arrival_rate import ArrivalRate
from varve.monitoring.progress_line import clock_time
from varve.monitoring.run_counters import Snapshot
from varve.monitoring.source_sizes import Remaining
from varve.monitoring.terminal_line import SEPARATOR
from varve.monitoring.token_forecast import tokens_left

# How busy stages are is measured over the last minute, and not over less than this.
_WINDOW_S, _LEAST_S = 60.0, 20.0


class ProgressText:
    """The text of one run."""

    def __init__(
        self,
        committed_rows: int,
        total_rows: int | None,
        *,
        remaining: Remaining | None = None,
        replicas: int = 0,
        lanes: int = 0,
    ) -> None:
        """Prepare the text.

        Args:
            committed_rows: rows that earlier runs have committed.
            total_rows: rows of the source, if known.
            remaining: what is missing of the source, if its rows are known.
            replicas: that the run starts with.
            lanes: of all of these.
        """
        self._committed_rows, self._total_rows, self._remaining = committed_rows, total_rows, remaining
        self._replicas, self._lanes = replicas, lanes
        self._rate = ArrivalRate()
        self._work: deque[tuple[float, Mapping[str, float]]] = deque()  # (clock, stage → seconds of work by then)

    def share(self, now: Snapshot) -> float | None:
        """Share of the rows that are encoded or were committed before, 0 to 1; None if their number is not known."""
        return min(1.0, (self._committed_rows + now.rows) / self._total_rows) if self._total_rows else None

    def describe(self, now: Snapshot, clock_s: float) -> str:
        """The text for a snapshot that was taken at `clock_s`."""
        if not now.rows:
            waits = f"{self._ready(now)} ready, encoding the first block" if now.replicas else "starting replicas"
            return SEPARATOR.join([waits, *_lost(now)])
        self._rate.observe(clock_s, {number: replica.tokens for number, replica in now.by_replica.items()})
        rows, speed = self._committed_rows + now.rows, self._rate.tokens_per_s(clock_s)
        failed = [f"{now.errors:,} failed rows"] if now.errors else []
        tokens = [f"{speed:,.0f} tokens/s"] if speed else []
        if not self._total_rows:
            figures = [f"{rows:,} rows", *failed]
        else:
            left, counts = self._left(now, rows, clock_s), f"{rows:,} of {self._total_rows:,} rows"
            figures = [f"{100 * rows // self._total_rows}%", *left, counts, *failed]
        return SEPARATOR.join([*figures, *tokens, self._ready(now), *_lost(now), *self._busiest(now, clock_s)])

    def _ready(self, now: Snapshot) -> str:
        if now.replicas < self._replicas:
            return f"{now.replicas} of {self._replicas} replicas"
        return f"{now.replicas} replica(s)"

    def _left(self, now: Snapshot, rows: int, clock_s: float) -> list[str]:
        """What the run still does: so many seconds of encoding, or rows to write."""
        rows_left = (self._total_rows or 0) - rows
        if rows_left <= 0:
            return [f"{now.missing_rows:,} rows to write"] if now.missing_rows else []
        forecast = rows_left * now.tokens / now.rows
        if self._remaining is not None and now.encoded is not None and now.encoded.rows:
            forecast = tokens_left(self._remaining, now.encoded)
        seconds = self._rate.seconds_left(clock_s, forecast)
        return [] if seconds is None else [f"{clock_time(seconds)} left"]

    def _busiest(self, now: Snapshot, clock_s: float) -> list[str]:
        """The stage that the others wait for at present, with the share of the time that its workers are busy."""
        if not self._work or now.seconds != self._work[-1][1]:  # between two blocks stages seem to rest
            self._work.append((clock_s, now.seconds))
        while len(self._work) > 2 and self._work[1][0] <= clock_s - _WINDOW_S:
            self._work.popleft()
        (then_s, before_s), (last_s, seconds) = self._work[0], self._work[-1]
        if last_s - then_s < _LEAST_S:
            return []
        lanes = max(1, round(self._lanes / max(1, self._replicas) * now.replicas))
        stages = bottleneck.measure(
            seconds, then_s, last_s, lanes=lanes, replicas=max(1, now.replicas), before_s=before_s
        )
        name = max(stages, key=lambda stage: stages[stage].busy)
        return [f"{name} {stages[name].busy:.0%} busy"]


def _lost(now: Snapshot) -> list[str]:
    """Replicas and parts that were lost."""
    replicas = [f"{now.restarts:,} replica restart(s)"] if now.restarts else []
    return [*replicas, f"{now.lost:,} part(s) started again"] if now.lost else replicas
