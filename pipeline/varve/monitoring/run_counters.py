"""The counters of a run: what workers report, which parts are in work, and whether the run is stopping.

Knows nothing of Ray; the engine runs it as an actor. A part that is started again without having ended was lost with
its worker; rows of a part that was lost often are suspected of killing workers. Invariants: no count ever falls,
whichever process dies; no row counts twice, however often its part is started.
"""

import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from varve.monitoring.block import Added, Block, PartCount
from varve.monitoring.history_recorder import HistoryRecorder
from varve.monitoring.row_errors import merge_reasons
from varve.monitoring.run_history import History
from varve.monitoring.source_sizes import SourceSizes
from varve.monitoring.token_forecast import EncodedBlocks, EncodedSums
from varve.ranges import Range


@dataclass(frozen=True, slots=True)
class ReplicaCount:
    """The work of one replica."""

    node: str  # address of its last node
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The counters of a run at one moment."""

    rows: int = 0
    tokens: int = 0
    errors: int = 0  # rows that failed
    null_texts: int = 0  # rows whose text is null
    error_reasons: dict[str, int] = field(default_factory=dict)  # reason → failed rows, the most frequent ones
    replicas: int = 0  # that have been ready; a restarted one counts once
    restarts: int = 0  # of replicas
    lost: int = 0  # times that a part was started again because its worker died
    encoder: dict[str, Any] = field(default_factory=dict)
    ready_s: float | None = None  # seconds from the start of the counters until the first replica was ready
    first_s: float | None = None  # the same for the first encoded block
    last_s: float | None = None  # the same for the last encoded block
    moved_at: float = 0.0  # Unix time of the last block; of the start before the first block
    under_way: tuple[Range, ...] = ()  # parts that workers have started and not ended
    oldest_at: float | None = None  # Unix time of the first start of the oldest of them
    seconds: dict[str, float] = field(default_factory=dict)  # stage → seconds of work
    before_s: dict[str, float] = field(default_factory=dict)  # the same until the first replica was ready
    packs: int = 0
    packed_tokens: int = 0
    parts: int = 0  # committed
    committed_rows: int = 0
    written_bytes: int = 0
    retries: int = 0  # repeated requests to the store while writing them
    missing_rows: int | None = None  # not committed yet; None if the number of source rows is not known
    by_replica: dict[int, ReplicaCount] = field(default_factory=dict)
    encoded: EncodedSums | None = None  # for the forecast of the tokens left; None if the source's rows are not known


class Verdict(NamedTuple):
    """The answer to the report of a block."""

    rows: int  # encoded in this run so far
    errors: int  # of them, rows that failed
    error_reasons: dict[str, int]  # reason → failed rows, the most frequent ones
    stop: bool  # the run is stopping


class RunCounters:
    """Sums up what workers report."""

    def __init__(
        self, missing_rows: int | None = None, started_at: float | None = None, sizes: SourceSizes | None = None
    ) -> None:
        """Start at zero.

        Args:
            missing_rows: not committed yet; None if the number of source rows is not known.
            started_at: Unix time of the start of the command, in seconds; None: now.
            sizes: of the source; None if the number of its rows is not known.
        """
        self._started = time.monotonic()
        self._started_at = time.time() if started_at is None else started_at
        self._before_s = max(0.0, time.time() - self._started_at)  # seconds of the command before these counters
        self._recorder = HistoryRecorder()
        self._encoded = EncodedBlocks(sizes) if sizes else None
        self._now = Snapshot(moved_at=time.time())
        self._missing_rows = missing_rows
        self._starts: Counter[tuple[str, Range]] = Counter()
        self._since: dict[tuple[str, Range], float] = {}
        self._part_counts: dict[Range, PartCount] = {}  # parts that are not committed
        self._committed: set[Range] = set()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._numbers: dict[str, int] = {}
        self._by_replica: dict[int, ReplicaCount] = {}
        self._stop = False

    def join(self, encoder: dict[str, Any], actor: str, node: str) -> int:
        """Count a replica that is ready; returns its number, which stays the same after a restart.

        Args:
            encoder: description of how it runs.
            actor: its id, which survives its death.
            node: address of its node.
        """
        is_restart = actor in self._numbers
        number = self._numbers.setdefault(actor, len(self._numbers))
        tokens = self._by_replica[number].tokens if is_restart else 0
        self._by_replica[number] = ReplicaCount(node, tokens)
        self._recorder.join(number, node, self._run_clock())
        self._now = replace(
            self._now,
            replicas=len(self._numbers),
            restarts=self._now.restarts + is_restart,
            encoder=encoder,
            ready_s=self._now.ready_s or self._clock(),
            before_s=self._now.before_s if self._now.ready_s else dict(self._seconds),
        )
        return number

    def begin(self, stage: str, rows: Range, replica: int | None = None) -> int:
        """A worker, the replica with this number, starts a part; returns how often it was started and did not end."""
        lost = self._starts[stage, rows]
        self._starts[stage, rows] += 1
        self._since.setdefault((stage, rows), time.time())
        if rows in self._part_counts:  # its blocks will be reported again
            self._part_counts[rows].attempt = Added()
        self._recorder.begin(rows, replica, self._run_clock())
        self._now = replace(self._now, lost=self._now.lost + bool(lost), under_way=self._under_way())
        return lost

    def end(self, stage: str, rows: Range) -> None:
        """A worker ends a part, or gives it back."""
        del self._starts[stage, rows]
        self._since.pop((stage, rows), None)
        self._recorder.end(rows, self._run_clock())
        self._now = replace(self._now, under_way=self._under_way())

    def _under_way(self) -> tuple[Range, ...]:
        return tuple(sorted({rows for _, rows in self._starts}))

    def add(self, block: Block, part: Range, replica: int | None = None) -> Verdict:
        """Count a block of a part, for the replica with this number. Rows that a dead worker reported count once."""
        now, clock_s = self._now, self._clock()
        first = part.start + self._encoded_rows(part)
        added = self._new(block, part)
        rows, tokens, errors, null_texts = added
        self._now = replace(
            now,
            rows=now.rows + rows,
            tokens=now.tokens + tokens,
            errors=now.errors + errors,
            null_texts=now.null_texts + null_texts,
            error_reasons=merge_reasons((now.error_reasons, block.reasons)) if errors else now.error_reasons,
            packs=now.packs + block.packs,
            packed_tokens=now.packed_tokens + block.packed_tokens,
            first_s=now.first_s or clock_s,
            last_s=clock_s,
            moved_at=time.time(),
        )
        for stage, seconds in block.seconds.items():
            self._seconds[stage] += seconds
        if self._encoded:
            self._encoded.add(block, added, part, first)
        self._recorder.add(block, added, part, replica, self._run_clock())
        if replica in self._by_replica:
            count = self._by_replica[replica]
            self._by_replica[replica] = replace(count, tokens=count.tokens + block.tokens)
        return Verdict(self._now.rows, self._now.errors, self._now.error_reasons, self._stop)

    def _new(self, block: Block, part: Range) -> Added:
        """What no earlier worker reported of a part; zero for a committed part."""
        return Added() if part in self._committed else self._part_counts.setdefault(part, PartCount()).add(block)

    def _encoded_rows(self, part: Range) -> int:
        """Rows of a part that were encoded, by whichever worker."""
        return self._part_counts[part].most.rows if part in self._part_counts else 0

    def spend(self, stage: str, seconds: float) -> None:
        """Add seconds of work of a stage."""
        self._seconds[stage] += seconds
        self._recorder.spend(stage, seconds, self._run_clock())

    def commit(self, rows: Range, file_bytes: int, retries: int) -> None:
        """Count a committed part once: a worker that dies after its report is followed by one that reports again.

        Args:
            rows: of the part.
            file_bytes: of its file.
            retries: repeated requests to write it.
        """
        now = self._now
        self._now = now = replace(now, retries=now.retries + retries)
        if rows in self._committed:
            return
        self._committed.add(rows)
        self._part_counts.pop(rows, None)
        self._now = replace(
            now,
            parts=now.parts + 1,
            committed_rows=now.committed_rows + rows.num_rows,
            written_bytes=now.written_bytes + file_bytes,
        )

    def stop(self) -> None:
        """Make the workers stop: they start no more parts."""
        self._stop = True

    def stopped(self) -> bool:
        """Whether the run is stopping."""
        return self._stop

    def _clock(self) -> float:
        return time.monotonic() - self._started

    def _run_clock(self) -> float:
        """Seconds since the start of the command."""
        return self._before_s + self._clock()

    def history(self) -> History:
        """What was recorded so far."""
        return self._recorder.history(self._started_at, self._run_clock())

    def snapshot(self) -> Snapshot:
        """The present counters."""
        missing = self._missing_rows
        return replace(
            self._now,
            oldest_at=min(self._since.values(), default=None),
            seconds=dict(self._seconds),
            missing_rows=None if missing is None else max(0, missing - self._now.committed_rows),
            by_replica=dict(self._by_replica),
            encoded=self._encoded.sums() if self._encoded and self._now.rows else None,
        )
