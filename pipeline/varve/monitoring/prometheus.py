"""The metrics of a run: its counters, which Ray exports to Prometheus on every node.

Ray adds the prefix `ray_` to names and its own labels. Knows nothing of the dataflow or of parts. Invariants: only the
counters' actor emits, since a dead worker's metrics vanish; metrics come from snapshots, which the driver takes anyway,
so blocks cost nothing; a gauge exists as long as its run.
"""

import sys
import time
from collections import deque
from typing import NamedTuple

from ray.util.metrics import Counter, Gauge

from varve.monitoring.bottleneck import STAGES
from varve.monitoring.run_counters import RunCounters, Snapshot
from varve.monitoring.source_sizes import SourceSizes

# Characters of the job's fingerprint that name a run: few enough to read, enough to tell runs apart.
RUN_CHARACTERS = 8
# Ratios are averages over the blocks of this many seconds, and over at least one block.
_WINDOW_S = 60.0
# Added at the start: Ray refuses 0, and `increase` misses the first event of a counter that did not exist before it.
_SMALLEST = sys.float_info.min

_COUNTERS = {
    "varve_rows_total": ("rows", "Rows encoded; a row that is encoded again after a worker's death counts once."),
    "varve_tokens_total": ("tokens", "Tokens of the rows encoded."),
    "varve_error_rows_total": ("errors", "Rows that failed; null texts are counted separately."),
    "varve_null_rows_total": ("null_texts", "Rows whose text is null."),
    "varve_committed_rows_total": ("committed_rows", "Rows of the parts committed."),
    "varve_committed_parts_total": ("parts", "Parts committed."),
    "varve_written_bytes_total": ("written_bytes", "Bytes of the parts committed."),
    "varve_store_retries_total": ("retries", "Repeated requests to the store while writing parts."),
    "varve_lost_parts_total": ("lost", "Times that a part was started again because its worker died."),
    "varve_replica_restarts_total": ("restarts", "Restarts of replicas after their death."),
}


class _Mark(NamedTuple):
    """Sums up to one block."""

    clock_s: float
    lane_s: float  # seconds of all lanes, busy or idle
    encode_s: float
    packs: int
    packed_tokens: int


class Meter:
    """Emits snapshots of one run."""

    def __init__(self, run: str) -> None:
        """Register the metrics; all counters exist from the start.

        Args:
            run: name of the run, a label of all its metrics.
        """
        self._run = {"run": run}
        self._counters = {name: Counter(name, help_text, ("run",)) for name, (_, help_text) in _COUNTERS.items()}
        self._seconds = Counter(
            "varve_stage_seconds_total",
            "Seconds of work in a stage, summed over its workers (encode: over the lanes of all replicas).",
            ("run", "stage"),
        )
        self._replica_tokens = Counter(
            "varve_replica_tokens_total",
            "Tokens that a replica has encoded, repeated ones included; a restarted replica keeps its number.",
            ("run", "replica", "node"),
        )
        self._gauges = {
            name: Gauge(name, help_text, ("run",))
            for name, help_text in {
                "varve_replicas_ready": "Replicas that have been ready.",
                "varve_missing_rows": "Rows that are not committed yet, if the number of source rows is known.",
                "varve_parts_under_way": "Parts that workers have started and not ended.",
                "varve_oldest_part_seconds": "Seconds since the first start of the oldest of them; 0 without one.",
                "varve_last_block_timestamp_seconds": "Unix time of the last block; the run's start before the first.",
                "varve_device_busy_ratio": "Share of the last minute in which lanes ran packs, over all replicas.",
                "varve_pack_fill_ratio": "Tokens of the last minute's packs over their budget.",
            }.items()
        }
        self._emitted = Snapshot()
        self._marks: deque[_Mark] = deque()
        self._lane_s, self._emitted_s = 0.0, time.monotonic()
        for counter in self._counters.values():
            counter.inc(_SMALLEST, self._run)
        for stage in STAGES:
            self._seconds.inc(_SMALLEST, {**self._run, "stage": stage})

    def emit(self, now: Snapshot) -> None:
        """Set the metrics to the counters of a snapshot; to be called at least every few seconds."""
        before, self._emitted = self._emitted, now
        for name, (field, _) in _COUNTERS.items():
            self._add(self._counters[name], getattr(now, field) - getattr(before, field))
        for stage, seconds in now.seconds.items():
            self._add(self._seconds, seconds - before.seconds.get(stage, 0.0), stage=stage)
        for number, replica in now.by_replica.items():
            previous = before.by_replica.get(number)
            added = replica.tokens - previous.tokens if previous else replica.tokens or _SMALLEST
            self._add(self._replica_tokens, added, replica=str(number), node=replica.node)
        for name, value in (_gauges(now) | self._ratios(now)).items():
            self._gauges[name].set(value, self._run)

    def _add(self, counter: Counter, value: float, **labels: str) -> None:
        if value > 0:
            counter.inc(value, {**self._run, **labels})

    def _ratios(self, now: Snapshot) -> dict[str, float | None]:
        """Ratios over the blocks of the window; empty before the second block."""
        previous_s, self._emitted_s = self._emitted_s, time.monotonic()
        self._lane_s += now.replicas * now.encoder.get("threads", 1) * (self._emitted_s - previous_s)
        clock_s, encode_s, marks = self._emitted_s, now.seconds.get("encode", 0.0), self._marks
        if now.replicas and (not marks or encode_s > marks[-1].encode_s):
            marks.append(_Mark(clock_s, self._lane_s, encode_s, now.packs, now.packed_tokens))
        while len(marks) > 2 and marks[1].clock_s <= clock_s - _WINDOW_S:  # two marks enclose a block
            marks.popleft()
        if len(marks) < 2:
            return {}
        first, last = marks[0], marks[-1]
        # Until the last block: a long block must not look like a pause, unless no block comes at all.
        until_s = last.lane_s if clock_s - last.clock_s <= _WINDOW_S else self._lane_s
        busy = (last.encode_s - first.encode_s) / (until_s - first.lane_s)
        budget = (last.packs - first.packs) * now.encoder["tokens_per_pack"]
        fill = (last.packed_tokens - first.packed_tokens) / budget if budget else None
        return {"varve_device_busy_ratio": min(1.0, busy), "varve_pack_fill_ratio": fill}


def _gauges(now: Snapshot) -> dict[str, float | None]:
    """Gauges that follow from one snapshot; None removes a gauge."""
    return {
        "varve_replicas_ready": now.replicas,
        "varve_missing_rows": now.missing_rows,
        "varve_parts_under_way": len(now.under_way),
        "varve_oldest_part_seconds": 0.0 if now.oldest_at is None else max(0.0, time.time() - now.oldest_at),
        "varve_last_block_timestamp_seconds": now.moved_at,
    }


class MeteredCounters(RunCounters):
    """Run counters that emit each snapshot as metrics."""

    def __init__(
        self,
        fingerprint: str,
        missing_rows: int | None = None,
        started_at: float | None = None,
        sizes: SourceSizes | None = None,
    ) -> None:
        """Counters of the job with this fingerprint; the other arguments are those of `RunCounters`."""
        super().__init__(missing_rows, started_at, sizes)
        self._meter = Meter(fingerprint[:RUN_CHARACTERS])

    def snapshot(self) -> Snapshot:
        """The present counters, which are also emitted."""
        now = super().snapshot()
        self._meter.emit(now)
        return now
