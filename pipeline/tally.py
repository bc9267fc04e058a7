"""What replicas report while a run goes on: counts, which parts are under way, and whether to stop.

Knows nothing of Ray: run.py makes it an actor. A part that is begun again without having ended was lost with its
worker; how often that happened is all that is needed to suspect its rows.
"""

import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from pipeline.ranges import Range


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Counts of this run so far."""

    rows: int = 0
    tokens: int = 0
    errors: int = 0
    replicas: int = 0
    lost: int = 0  # times that a part was begun again, because its worker had died
    encoder: dict[str, Any] = field(default_factory=dict)
    ready_s: float | None = None  # when the first replica was ready, after the tally was
    first_s: float | None = None  # when the first block was encoded
    last_s: float | None = None  # when the last one was
    under_way: tuple[Range, ...] = ()  # parts that replicas have begun and not ended


class Verdict(NamedTuple):
    """What a replica is told in return."""

    errors: int  # of the whole run so far
    stop: bool  # the run was asked to end


class Tally:
    """Adds up what replicas report."""

    def __init__(self) -> None:
        """Start from nothing."""
        self._began = time.monotonic()
        self._now = Snapshot()
        self._begun: Counter[tuple[str, Range]] = Counter()
        self._stop = False

    def join(self, encoder: dict[str, Any]) -> None:
        """A replica is ready; `encoder` says how it runs."""
        ready_s = self._now.ready_s or self._clock()
        self._now = replace(self._now, replicas=self._now.replicas + 1, encoder=encoder, ready_s=ready_s)

    def begin(self, stage: str, rows: Range) -> int:
        """A worker takes a part; returns how often one has taken it before and not ended it."""
        before = self._begun[stage, rows]
        self._begun[stage, rows] += 1
        self._now = replace(self._now, lost=self._now.lost + bool(before), under_way=self._under_way())
        return before

    def end(self, stage: str, rows: Range) -> None:
        """A part is done with, or given back."""
        del self._begun[stage, rows]
        self._now = replace(self._now, under_way=self._under_way())

    def _under_way(self) -> tuple[Range, ...]:
        return tuple(sorted({rows for _, rows in self._begun}))

    def add(self, rows: int, tokens: int, errors: int) -> Verdict:
        """Count a block."""
        now, clock_s = self._now, self._clock()
        self._now = replace(
            now,
            rows=now.rows + rows,
            tokens=now.tokens + tokens,
            errors=now.errors + errors,
            first_s=now.first_s or clock_s,
            last_s=clock_s,
        )
        return Verdict(self._now.errors, self._stop)

    def stop(self) -> None:
        """Ask everyone to end: no part is begun any more."""
        self._stop = True

    def stopped(self) -> bool:
        """Whether the run was asked to end."""
        return self._stop

    def _clock(self) -> float:
        return time.monotonic() - self._began

    def snapshot(self) -> Snapshot:
        """The counts as they stand."""
        return self._now
