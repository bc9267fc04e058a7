"""Differences of speed that a reader should know of: between two periods of a job, and between its replicas.

Knows nothing of pages. Invariant: times in which nothing could be encoded (start, stall, end) do not count, so a change
is one of the encoding itself.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from varve.exploration.run_times import ReplicaParts, RunTimes

_LEAST_BINS = 8
_LEAST_SHARE = 0.15  # of the bins, in each of the two periods
_LEAST_RATIO = 1.5  # of the two speeds
# Share of the variance between bins that two periods must explain: single slow blocks are no change.
_LEAST_EXPLAINED = 0.5


@dataclass(frozen=True, slots=True)
class SpeedChange:
    """The speed before and after a time on the axis of the job, in tokens per second."""

    at_s: float
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class SlowReplica:
    """A replica that encodes fewer tokens per second than the median of the others of its attempt."""

    attempt: int
    number: int
    node: str
    tokens_per_s: float
    others: float


def find_speed_change(run: RunTimes) -> SpeedChange | None:
    """The time that divides the job best into a faster and a slower period; None if the speed hardly changes."""
    middles_s = (run.edges_s[1:] + run.edges_s[:-1]) / 2
    speeds = run.tokens / np.diff(run.edges_s)
    kept = ~_is_lost(run, middles_s)
    speeds, middles_s = speeds[kept], middles_s[kept]
    margin = max(1, int(_LEAST_SHARE * len(speeds)))
    if len(speeds) < _LEAST_BINS or not speeds.any():
        return None
    squares = {at: _squares(speeds[:at]) + _squares(speeds[at:]) for at in range(margin, len(speeds) - margin + 1)}
    at = min(squares, key=lambda split: squares[split])
    before, after = float(speeds[:at].mean()), float(speeds[at:].mean())
    explained = 1 - squares[at] / max(_squares(speeds), 1e-9)
    if explained < _LEAST_EXPLAINED or max(before, after) < _LEAST_RATIO * min(before, after):
        return None
    return SpeedChange(float((middles_s[at - 1] + middles_s[at]) / 2), before, after)


def _is_lost(run: RunTimes, times_s: NDArray[np.float64]) -> NDArray[np.bool_]:
    lost = np.zeros(len(times_s), np.bool_)
    for each in run.lost:
        if each.kind != "restart":
            lost |= (times_s >= each.begins_s) & (times_s <= each.ends_s)
    return lost


def _squares(values: NDArray[np.float64]) -> float:
    return float(((values - values.mean()) ** 2).sum())


def find_slow_replicas(run: RunTimes) -> list[SlowReplica]:
    """The replicas that are slower than the others of their attempt by at least half of their speed."""
    found = []
    measured = [(each, speed) for each in run.replicas if (speed := _speed(each))]
    for replica, speed in measured:
        others = [other for each, other in measured if each.attempt == replica.attempt and each is not replica]
        if others and (usual := float(np.median(others))) > _LEAST_RATIO * speed:
            found.append(SlowReplica(replica.attempt, replica.number, replica.node, speed, usual))
    return found


def _speed(replica: ReplicaParts) -> float:
    """Tokens per second while it encoded parts that it ended; 0 without one."""
    ended = [each for each in replica.parts if each.part.ended_s is not None]
    seconds = sum(each.ends_s - each.begins_s for each in ended)
    return sum(each.part.tokens for each in ended) / seconds if seconds else 0.0
