"""What workers report while a run goes on: counts, which parts are under way, and whether to stop.

Knows nothing of Ray: run/ makes it an actor. A part that is begun again without having ended was lost with its
worker; how often that happened is all that is needed to suspect its rows. Invariants: no count ever falls, whoever
dies, since what was reported stays here; no row counts twice, however often its part is begun.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from varve.ranges import Range


@dataclass(frozen=True, slots=True)
class Block:
    """What a replica says of a block that is done."""

    rows: int
    tokens: int
    errors: int
    seconds: Mapping[str, float] = field(default_factory=dict)  # stage → seconds of work
    packs: int = 0
    packed_tokens: int = 0  # in those packs: less than `tokens` where texts are alike


@dataclass(frozen=True, slots=True)
class ReplicaCount:
    """What one replica has done."""

    node: str  # address of the node that it was last seen on
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Counts of this run so far."""

    rows: int = 0
    tokens: int = 0
    errors: int = 0
    replicas: int = 0  # that have been ready; one that died and came back is one
    restarts: int = 0  # times that one came back
    lost: int = 0  # times that a part was begun again, because its worker had died
    encoder: dict[str, Any] = field(default_factory=dict)
    ready_s: float | None = None  # when the first replica was ready, after the counters was
    first_s: float | None = None  # when the first block was encoded
    last_s: float | None = None  # when the last one was
    moved_at: float = 0.0  # Unix time of the last block, of the counters's start before there is one
    under_way: tuple[Range, ...] = ()  # parts that replicas have begun and not ended
    oldest_at: float | None = None  # Unix time at which the oldest of them was begun first
    seconds: dict[str, float] = field(default_factory=dict)  # stage → seconds of work
    before_s: dict[str, float] = field(default_factory=dict)  # of those, until the first replica was ready
    packs: int = 0
    packed_tokens: int = 0
    parts: int = 0  # committed
    committed_rows: int = 0
    written_bytes: int = 0
    retries: int = 0  # requests to the store that were made again to write them
    missing_rows: int | None = None  # not committed yet; None where the source's rows are not known
    by_replica: dict[int, ReplicaCount] = field(default_factory=dict)


@dataclass(slots=True)
class _Brought:
    """What a part has brought to the counts: (rows, tokens, errors)."""

    attempt: tuple[int, ...] = (0, 0, 0)  # by the worker that has it now
    most: tuple[int, ...] = (0, 0, 0)  # by any worker that had it

    def add(self, block: Block) -> tuple[int, ...]:
        """Add a block of this attempt; returns what it has beyond those of earlier ones, which came this far or not."""
        before = self.most
        self.attempt = tuple(map(sum, zip(self.attempt, (block.rows, block.tokens, block.errors), strict=True)))
        self.most = tuple(map(max, before, self.attempt))
        return tuple(now - then for now, then in zip(self.most, before, strict=True))


class Verdict(NamedTuple):
    """What a replica is told in return."""

    errors: int  # of the whole run so far
    stop: bool  # the run was asked to end


class RunCounters:
    """Adds up what workers report."""

    def __init__(self, missing_rows: int | None = None) -> None:
        """Start from nothing; `missing_rows` of the source are not committed, where its rows are known."""
        self._began = time.monotonic()
        self._now = Snapshot(moved_at=time.time())
        self._missing_rows = missing_rows
        self._begun: Counter[tuple[str, Range]] = Counter()
        self._since: dict[tuple[str, Range], float] = {}
        self._brought: dict[Range, _Brought] = {}  # of parts that are not committed
        self._committed: set[Range] = set()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._numbers: dict[str, int] = {}
        self._by_replica: dict[int, ReplicaCount] = {}
        self._stop = False

    def join(self, encoder: dict[str, Any], who: str, node: str) -> int:
        """A replica is ready; returns its number, the same each time that it comes back.

        Args:
            encoder: how it runs.
            who: its name, which outlives its death.
            node: address of its node.
        """
        back = who in self._numbers
        number = self._numbers.setdefault(who, len(self._numbers))
        done = self._by_replica[number].tokens if back else 0
        self._by_replica[number] = ReplicaCount(node, done)
        self._now = replace(
            self._now,
            replicas=len(self._numbers),
            restarts=self._now.restarts + back,
            encoder=encoder,
            ready_s=self._now.ready_s or self._clock(),
            before_s=self._now.before_s if self._now.ready_s else dict(self._seconds),
        )
        return number

    def begin(self, stage: str, rows: Range) -> int:
        """A worker takes a part; returns how often one has taken it before and not ended it."""
        before = self._begun[stage, rows]
        self._begun[stage, rows] += 1
        self._since.setdefault((stage, rows), time.time())
        if rows in self._brought:  # its blocks come again
            self._brought[rows].attempt = (0, 0, 0)
        self._now = replace(self._now, lost=self._now.lost + bool(before), under_way=self._under_way())
        return before

    def end(self, stage: str, rows: Range) -> None:
        """A part is done with, or given back."""
        del self._begun[stage, rows]
        self._since.pop((stage, rows), None)
        self._now = replace(self._now, under_way=self._under_way())

    def _under_way(self) -> tuple[Range, ...]:
        return tuple(sorted({rows for _, rows in self._begun}))

    def add(self, block: Block, part: Range, replica: int | None = None) -> Verdict:
        """Count a block of a part, of a replica by its number. What a lost worker has told of its rows counts once."""
        now, clock_s = self._now, self._clock()
        rows, tokens, errors = self._new(block, part)
        self._now = replace(
            now,
            rows=now.rows + rows,
            tokens=now.tokens + tokens,
            errors=now.errors + errors,
            packs=now.packs + block.packs,
            packed_tokens=now.packed_tokens + block.packed_tokens,
            first_s=now.first_s or clock_s,
            last_s=clock_s,
            moved_at=time.time(),
        )
        for stage, seconds in block.seconds.items():
            self.spend(stage, seconds)
        if replica in self._by_replica:
            count = self._by_replica[replica]
            self._by_replica[replica] = replace(count, tokens=count.tokens + block.tokens)
        return Verdict(self._now.errors, self._stop)

    def _new(self, block: Block, part: Range) -> tuple[int, ...]:
        """What no earlier worker has told of a part's rows; nothing of one whose file is there already."""
        return (0, 0, 0) if part in self._committed else self._brought.setdefault(part, _Brought()).add(block)

    def spend(self, stage: str, seconds: float) -> None:
        """Count the seconds that a stage has worked on a part."""
        self._seconds[stage] += seconds

    def commit(self, rows: Range, file_bytes: int, retries: int) -> None:
        """Count a part that is committed, once: a worker that dies after telling so is followed by one that tells too.

        Args:
            rows: of the part.
            file_bytes: of its file.
            retries: requests that were made again to write it.
        """
        now = self._now
        self._now = now = replace(now, retries=now.retries + retries)
        if rows in self._committed:
            return
        self._committed.add(rows)
        self._brought.pop(rows, None)
        self._now = replace(
            now,
            parts=now.parts + 1,
            committed_rows=now.committed_rows + rows.num_rows,
            written_bytes=now.written_bytes + file_bytes,
        )

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
        missing = self._missing_rows
        return replace(
            self._now,
            oldest_at=min(self._since.values(), default=None),
            seconds=dict(self._seconds),
            missing_rows=None if missing is None else max(0, missing - self._now.committed_rows),
            by_replica=dict(self._by_replica),
        )
