"""The course of a job over all processes that ran it: speed, attempts, parts of each replica, lost time, busy stages.

Knows nothing of vectors and pages. Times are on one axis without the pauses between attempts: an attempt begins where
the one before it ended. Invariant: an attempt that was killed ends at its last record, so no time is made up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varve.exploration.lost_time import LostTime, busy_bins, find_lost_time
from varve.monitoring.bottleneck import STAGES, Stage
from varve.monitoring.run_history import History, PartSpan, ReplicaHistory

_MAX_BINS = 120


@dataclass(frozen=True, slots=True)
class Attempt:
    """One process that ran the job.

    Attributes:
        number: from 1.
        started_at: Unix time in seconds.
        begins_s: on the axis of the job.
        ends_s: likewise.
        outcome: finished, stopped, failed, or killed.
        reason: why it stopped or failed.
        rows: that it encoded.
        tokens: of these rows.
        errors: of these rows, rows that failed.
    """

    number: int
    started_at: float
    begins_s: float
    ends_s: float
    outcome: str
    reason: str
    rows: int
    tokens: int
    errors: int


@dataclass(frozen=True, slots=True)
class PlacedPart:
    """A part on the axis of the job."""

    part: PartSpan
    begins_s: float
    ends_s: float


@dataclass(frozen=True, slots=True)
class ReplicaParts:
    """The parts of one replica in one attempt, and all tokens that it encoded."""

    attempt: int
    number: int
    node: str
    parts: tuple[PlacedPart, ...]
    tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class RunTimes:
    """The course of a job.

    Attributes:
        attempts: in the order of their starts.
        ends_s: the length of the axis.
        edges_s: (B + 1,) float64 edges of the bins of `tokens`.
        tokens: (B,) float64 tokens in each bin.
        replicas: by attempt and number.
        parts_left_out: parts whose times were not kept.
        lost: ordered by time.
        stages: how busy each stage was, over all attempts; empty if the number of workers is not known.
    """

    attempts: tuple[Attempt, ...]
    ends_s: float
    edges_s: NDArray[np.float64]
    tokens: NDArray[np.float64]
    replicas: tuple[ReplicaParts, ...]
    parts_left_out: int
    lost: tuple[LostTime, ...]
    stages: Mapping[str, Stage]

    @property
    def encoding_s(self) -> float:
        """Seconds of all attempts without their starts."""
        return self.ends_s - sum(each.seconds for each in self.lost if each.kind == "start")


def measure_run(histories: Sequence[History], stages: Mapping[str, Any]) -> RunTimes | None:
    """Put the histories of a job on one axis.

    Args:
        histories: in the order of their starts.
        stages: of the manifest: stage → its entry, with `at_once`.

    Returns:
        None without a history.
    """
    if not histories:
        return None
    shifts_s = [0.0, *accumulate(each.updated_s for each in histories)]
    attempts = list(enumerate(zip(histories, shifts_s, strict=False), 1))
    edges_s, tokens = _speed(histories, shifts_s)
    lost = [find_lost_time(history, number, shift_s) for number, (history, shift_s) in attempts]
    return RunTimes(
        attempts=tuple(_attempt(number, history, shift_s) for number, (history, shift_s) in attempts),
        ends_s=shifts_s[-1],
        edges_s=edges_s,
        tokens=tokens,
        replicas=tuple(
            _replica_parts(number, history, replica, shift_s)
            for number, (history, shift_s) in attempts
            for replica in history.replicas
        ),
        parts_left_out=sum(each.parts_left_out for each in histories),
        lost=tuple(each for of_attempt in lost for each in of_attempt),
        stages=_measure_stages(histories, stages),
    )


def _attempt(number: int, history: History, shift_s: float) -> Attempt:
    return Attempt(
        number=number,
        started_at=history.started_at,
        begins_s=shift_s,
        ends_s=shift_s + history.updated_s,
        # The output is finished, so a process that never said how it ended was killed.
        outcome="killed" if history.outcome == "running" else history.outcome,
        reason=history.reason,
        rows=sum(history.rows),
        tokens=sum(history.tokens),
        errors=sum(history.errors),
    )


def _replica_parts(attempt: int, history: History, replica: ReplicaHistory, shift_s: float) -> ReplicaParts:
    """The parts of a replica; one that did not end lasts until the replica's next part, or to the last record."""
    own = [part for part in history.parts if part.replica == replica.number]
    next_s = [*(part.begun_s for part in own[1:]), history.updated_s]
    spans = [
        PlacedPart(part, part.begun_s + shift_s, (ends_s if part.ended_s is None else part.ended_s) + shift_s)
        for part, ends_s in zip(own, next_s, strict=False)
    ]
    return ReplicaParts(attempt, replica.number, replica.node, tuple(spans), sum(replica.tokens))


def _speed(histories: Sequence[History], shifts_s: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(edges of at most `_MAX_BINS` bins in seconds, tokens in each), from bins of different widths.

    Blocks arrive seconds apart, so a bin is at least twice as wide as their usual distance.
    """
    times_s, sums, distances_s = [0.0], [0.0], [0.0]
    for history, shift_s in zip(histories, shifts_s, strict=False):
        ends_s = np.minimum(np.arange(1, len(history.tokens) + 1) * history.bin_s, history.updated_s) + shift_s
        times_s += ends_s.tolist()
        sums += (sums[-1] + np.cumsum(history.tokens, dtype=np.float64)).tolist()
        distances_s += (np.diff(busy_bins(history)) * history.bin_s).tolist()
    least_s = max(2 * float(np.median(distances_s)), *(each.bin_s for each in histories))
    num_bins = int(np.clip(times_s[-1] / least_s, 1, _MAX_BINS))
    edges_s = np.linspace(0.0, max(times_s[-1], least_s), num_bins + 1)
    return edges_s, np.diff(np.interp(edges_s, times_s, sums))


def _measure_stages(histories: Sequence[History], stages: Mapping[str, Any]) -> dict[str, Stage]:
    """How busy each stage was between the first replica and the last block, over all attempts."""
    measured = {}
    for name in STAGES:
        entry = stages.get(name)
        at_once = entry.get("at_once") if isinstance(entry, dict) else None
        if not isinstance(at_once, int) or at_once < 1:
            continue
        work_s = wall_s = 0.0
        for history in histories:
            seconds, busy = history.stages.get(name, ()), busy_bins(history)
            ready_s = min((each.ready_s[0] for each in history.replicas if each.ready_s), default=0.0)
            if len(busy):
                work_s += sum(seconds[int(ready_s / history.bin_s) :])
                wall_s += max(0.0, (busy[-1] + 1) * history.bin_s - ready_s)
        measured[name] = Stage(work_s, at_once, min(1.0, work_s / max(wall_s * at_once, 1e-9)))
    return measured
