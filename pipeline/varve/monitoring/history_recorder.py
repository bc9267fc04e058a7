"""Records what happens in a run over time: the content of its history, but for how it ended.

Pure: the clock is an argument, in seconds since the start of the command, and never goes back. Knows nothing of Ray or
of the store. A report costs the same however long the run is; memory is bounded by the limits of `run_history`.
Invariants: the bins of rows, tokens and errors add up to what the run's counters have; those of a replica to what it
encoded.
"""

from dataclasses import dataclass, replace

import numpy as np

from varve.monitoring.block import Added, Block
from varve.monitoring.run_history import (
    MAX_EVENTS,
    MAX_PARTS,
    MAX_REPLICAS,
    MAX_TEXT,
    Event,
    History,
    PartSpan,
    ReplicaHistory,
)
from varve.monitoring.time_bins import TimeBins
from varve.ranges import Range

_ROWS, _TOKENS, _ERRORS = range(3)
_MAX_LOST_EVENTS = MAX_EVENTS - 50  # the rest is for the end of the run
_MAX_READY = 16  # times that are kept of one replica
_MAX_NODE = 256  # characters


@dataclass(slots=True)
class _OpenPart:
    """A part in work."""

    replica: int
    begun_s: float
    span: int | None  # its position in the spans, if it is kept


@dataclass(slots=True)
class _Replica:
    node: str
    ready_s: tuple[float, ...]
    reported_s: float  # its last report


class HistoryRecorder:
    """Records one run."""

    def __init__(self) -> None:
        self._totals = TimeBins(3, np.int64)
        self._stages = TimeBins(8, np.float64)
        self._tokens = TimeBins(1, np.int64)  # per replica
        self._stage_numbers: dict[str, int] = {}
        self._replicas: dict[int, _Replica] = {}
        self._open: dict[Range, _OpenPart] = {}
        self._spans: list[PartSpan] = []
        self._left_out = 0
        self._events: list[Event] = []

    def join(self, number: int, node: str, at_s: float) -> None:
        """A replica is ready, for the first time or after a restart."""
        ready_s = self._replicas[number].ready_s if number in self._replicas else ()
        kept_s = (*ready_s, round(at_s, 3)) if len(ready_s) < _MAX_READY else ready_s
        self._replicas[number] = _Replica(node[:_MAX_NODE], kept_s, at_s)

    def begin(self, part: Range, replica: int | None, at_s: float) -> None:
        """A replica starts a part; if it is in work already, its worker has died."""
        previous = self._open.pop(part, None)
        if previous is not None:
            self._add_lost(part, previous.replica, at_s)
        if replica is None:
            return
        span = None
        if len(self._spans) < MAX_PARTS:
            span = len(self._spans)
            begun = {"begun_s": round(at_s, 3), "ended_s": None, "tokens": 0, "errors": 0}
            rows = {"shard": part.shard, "start": part.start, "stop": part.stop}
            self._spans.append(PartSpan(**rows, replica=replica, **begun))
        else:
            self._left_out += 1
        self._open[part] = _OpenPart(replica, at_s, span)

    def _add_lost(self, part: Range, replica: int, at_s: float) -> None:
        if len(self._events) < _MAX_LOST_EVENTS:
            text = f"rows [{part.start}, {part.stop}) of shard {part.shard} were started again: replica {replica} died"
            self._events.append(Event(at_s=round(at_s, 3), kind="part_lost", text=text[:MAX_TEXT]))

    def end(self, part: Range, at_s: float) -> None:
        """A replica ends a part, or gives it back."""
        ended = self._open.pop(part, None)
        if ended and ended.span is not None:
            self._spans[ended.span] = replace(self._spans[ended.span], ended_s=round(at_s, 3))

    def add(self, block: Block, added: Added, part: Range, replica: int | None, at_s: float) -> None:
        """A replica has encoded a block of a part, since its last report or since it began the part."""
        since_s = self._since(part, replica, at_s)
        for series, value in ((_ROWS, added.rows), (_TOKENS, added.tokens), (_ERRORS, added.errors)):
            if value:
                self._totals.add(series, value, since_s, at_s)
        for stage, seconds in block.seconds.items():
            self._add_seconds(stage, seconds, since_s, at_s)
        if replica in self._replicas:
            self._replicas[replica].reported_s = at_s
            if replica < MAX_REPLICAS:
                self._tokens.add(replica, block.tokens, since_s, at_s)
        opened = self._open.get(part)
        if opened and opened.span is not None:
            span = self._spans[opened.span]
            tokens, errors = span.tokens + block.tokens, span.errors + block.errors
            self._spans[opened.span] = replace(span, tokens=tokens, errors=errors)

    def _since(self, part: Range, replica: int | None, at_s: float) -> float:
        opened, reporter = self._open.get(part), self._replicas.get(-1 if replica is None else replica)
        begun_s = opened.begun_s if opened else 0.0
        return min(at_s, max(begun_s, reporter.reported_s if reporter else 0.0)) if opened or reporter else at_s

    def spend(self, stage: str, seconds: float, at_s: float) -> None:
        """A worker has spent seconds of work on a stage, up to now."""
        self._add_seconds(stage, seconds, max(0.0, at_s - seconds), at_s)

    def _add_seconds(self, stage: str, seconds: float, since_s: float, until_s: float) -> None:
        if seconds > 0:
            number = self._stage_numbers.setdefault(stage, len(self._stage_numbers))
            self._stages.add(number, seconds, since_s, until_s)

    def history(self, started_at: float, at_s: float) -> History:
        """What is recorded so far, of a run that is running.

        Args:
            started_at: Unix time of the start of the command, in seconds.
            at_s: the clock.
        """
        kinds = (self._totals, self._stages, self._tokens)
        for bins in kinds:
            bins.reach(at_s)
        width_s = max(bins.width_s for bins in kinds)
        for bins in kinds:
            bins.widen(width_s)
        rows, tokens, errors = (tuple(series) for series in self._totals.sums(at_s).tolist())
        stages, by_replica = np.round(self._stages.sums(at_s), 3).tolist(), self._tokens.sums(at_s).tolist()
        return History(
            started_at=started_at,
            updated_s=round(at_s, 3),
            outcome="running",
            reason="",
            before_s={},
            bin_s=width_s,
            rows=rows,
            tokens=tokens,
            errors=errors,
            stages={name: tuple(stages[number]) for name, number in self._stage_numbers.items()},
            replicas=tuple(
                ReplicaHistory(
                    number=number,
                    node=replica.node,
                    ready_s=replica.ready_s,
                    tokens=tuple(by_replica[number]) if number < len(by_replica) else (0,) * len(rows),
                )
                for number, replica in sorted(self._replicas.items())[:MAX_REPLICAS]
            ),
            parts=tuple(self._spans),
            parts_left_out=self._left_out,
            events=tuple(self._events),
        )
