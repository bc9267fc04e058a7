"""What a run shows to monitoring: the tally's counts as metrics, which Ray exports to Prometheus on every node.

Ray puts `ray_` before the names and labels of its own beside `run`. Knows nothing of the graph or of parts. Invariants:
the tally alone emits, since what a worker has counted vanishes with it; the metrics follow from snapshots, which the
driver takes anyway, so blocks pay nothing; a gauge lives as long as its run.
"""

import sys
import time
from collections import deque
from typing import NamedTuple

from ray.util.metrics import Counter, Gauge

from varve.monitoring.run_counters import RunCounters, Snapshot

# Characters of the job's fingerprint that name a run: few enough to read, enough to reporter runs apart.
RUN_CHARACTERS = 8
# Ratios are those of the blocks of so many seconds, and of one block at the least.
_WINDOW_S = 60.0
# Ray refuses to add 0, and a counter that is not there before its first event hides that event from `increase`.
_NOTHING = sys.float_info.min

_COUNTERS = {
    "varve_rows_total": ("rows", "Rows encoded; one that is encoded again after a death does not count again."),
    "varve_tokens_total": ("tokens", "Tokens of the rows encoded."),
    "varve_error_rows_total": ("errors", "Rows that could not be encoded."),
    "varve_committed_rows_total": ("committed_rows", "Rows of the parts committed."),
    "varve_committed_parts_total": ("parts", "Parts committed."),
    "varve_written_bytes_total": ("written_bytes", "Bytes of the parts committed."),
    "varve_store_retries_total": ("retries", "Requests to the store that were made again to write parts."),
    "varve_lost_parts_total": ("lost", "Times that a part was begun again since its worker had died."),
    "varve_replica_restarts_total": ("restarts", "Times that a replica came back after its death."),
}
_STAGES = ("read", "tokenize", "encode", "write")


class _Mark(NamedTuple):
    """The encoder's work up to a block."""

    clock_s: float
    lane_s: float  # that lanes were there, busy or not
    encode_s: float
    packs: int
    packed_tokens: int


class Meter:
    """Shows snapshots of one run."""

    def __init__(self, run: str) -> None:
        """Register the metrics; all counters are there from the start.

        Args:
            run: name of the run, the label of all its metrics.
        """
        self._run = {"run": run}
        self._counters = {name: Counter(name, told, ("run",)) for name, (_, told) in _COUNTERS.items()}
        self._seconds = Counter(
            "varve_stage_seconds_total",
            "Seconds of work in a stage, summed over all that work on it (encode: over the lanes of all replicas).",
            ("run", "stage"),
        )
        self._replica_tokens = Counter(
            "varve_replica_tokens_total",
            "Tokens that a replica has encoded, again or not; its number stays when it comes back.",
            ("run", "replica", "node"),
        )
        self._gauges = {
            name: Gauge(name, told, ("run",))
            for name, told in {
                "varve_replicas_ready": "Replicas that have been ready.",
                "varve_missing_rows": "Rows that are not committed yet, where the source's rows are known.",
                "varve_parts_under_way": "Parts that workers have begun and not ended.",
                "varve_oldest_part_seconds": "How long ago the oldest of them was begun first; 0 without one.",
                "varve_last_block_timestamp_seconds": "Unix time of the last block, of the run's start before it.",
                "varve_device_busy_ratio": "Share of the last minute in which lanes ran packs, over all replicas.",
                "varve_pack_fill_ratio": "Tokens of the last minute's packs over their budget.",
            }.items()
        }
        self._shown = Snapshot()
        self._marks: deque[_Mark] = deque()
        self._lane_s, self._looked_s = 0.0, time.monotonic()
        for counter in self._counters.values():
            counter.inc(_NOTHING, self._run)
        for stage in _STAGES:
            self._seconds.inc(_NOTHING, {**self._run, "stage": stage})

    def show(self, now: Snapshot) -> None:
        """Bring the metrics to the counts of a snapshot; to be called every few seconds at the least."""
        before, self._shown = self._shown, now
        for name, (field, _) in _COUNTERS.items():
            self._add(self._counters[name], getattr(now, field) - getattr(before, field))
        for stage, seconds in now.seconds.items():
            self._add(self._seconds, seconds - before.seconds.get(stage, 0.0), stage=stage)
        for number, replica in now.by_replica.items():
            had = before.by_replica.get(number)
            added = replica.tokens - had.tokens if had else replica.tokens or _NOTHING
            self._add(self._replica_tokens, added, replica=str(number), node=replica.node)
        for name, value in (_gauges(now) | self._ratios(now)).items():
            self._gauges[name].set(value, self._run)

    def _add(self, counter: Counter, value: float, **labels: str) -> None:
        if value > 0:
            counter.inc(value, {**self._run, **labels})

    def _ratios(self, now: Snapshot) -> dict[str, float | None]:
        """Of the blocks since the window began; None where there is none."""
        before_s, self._looked_s = self._looked_s, time.monotonic()
        self._lane_s += now.replicas * now.encoder.get("threads", 1) * (self._looked_s - before_s)
        clock_s, encode_s, marks = self._looked_s, now.seconds.get("encode", 0.0), self._marks
        if now.replicas and (not marks or encode_s > marks[-1].encode_s):
            marks.append(_Mark(clock_s, self._lane_s, encode_s, now.packs, now.packed_tokens))
        while len(marks) > 2 and marks[1].clock_s <= clock_s - _WINDOW_S:  # a block lies between two
            marks.popleft()
        if len(marks) < 2:
            return {}
        first, last = marks[0], marks[-1]
        # Up to the last block, or blocks that take long would seem to be pauses; unless none comes any more.
        until_s = last.lane_s if clock_s - last.clock_s <= _WINDOW_S else self._lane_s
        busy = (last.encode_s - first.encode_s) / (until_s - first.lane_s)
        budget = (last.packs - first.packs) * now.encoder["tokens_per_pack"]
        fill = (last.packed_tokens - first.packed_tokens) / budget if budget else None
        return {"varve_device_busy_ratio": min(1.0, busy), "varve_pack_fill_ratio": fill}


def _gauges(now: Snapshot) -> dict[str, float | None]:
    """Those that a snapshot alone gives; None where it does not."""
    return {
        "varve_replicas_ready": now.replicas,
        "varve_missing_rows": now.missing_rows,
        "varve_parts_under_way": len(now.under_way),
        "varve_oldest_part_seconds": 0.0 if now.oldest_at is None else max(0.0, time.time() - now.oldest_at),
        "varve_last_block_timestamp_seconds": now.moved_at,
    }


class MeteredCounters(RunCounters):
    """A tally that shows what it is asked for."""

    def __init__(self, fingerprint: str, missing_rows: int | None = None) -> None:
        """Of the job with this fingerprint."""
        super().__init__(missing_rows)
        self._meter = Meter(fingerprint[:RUN_CHARACTERS])

    def snapshot(self) -> Snapshot:
        """The counts as they stand, shown to monitoring too."""
        now = super().snapshot()
        self._meter.show(now)
        return now
