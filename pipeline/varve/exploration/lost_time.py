"""Times of one attempt in which its replicas encoded less than they could: start, restarts, stalls, and the end.

Knows nothing of other attempts. Invariants: times are found from the history alone; a stall is reported only if the
whole run encoded nothing for much longer than between other blocks; a restart counts for its replica alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from varve.monitoring.run_history import History, ReplicaHistory

# Without a block for so many times the usual distance of blocks, and for so many seconds, the run stalls.
_STALL_DISTANCES, _LEAST_STALL_S = 5.0, 10.0
_PHASES = {"ray": "Ray", "imports": "imports", "diff": "comparison of the tables", "plan": "plan"}


@dataclass(frozen=True, slots=True)
class LostTime:
    """A time without, or with less, encoding.

    Attributes:
        kind: start, restart, stall or end.
        attempt: number of the attempt.
        begins_s: on the axis of the job.
        ends_s: likewise.
        replica: number of the one that was restarted; None if the whole run is concerned.
        text: what happened.
    """

    kind: str
    attempt: int
    begins_s: float
    ends_s: float
    replica: int | None
    text: str

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.ends_s - self.begins_s


def find_lost_time(history: History, attempt: int, shift_s: float) -> list[LostTime]:
    """The lost times of an attempt, by their begin.

    Args:
        history: of the attempt.
        attempt: its number.
        shift_s: where it begins on the axis of the job.
    """

    def lost(kind: str, begins_s: float, ends_s: float, text: str, replica: int | None = None) -> LostTime:
        ends_s = min(ends_s, history.updated_s)
        return LostTime(kind, attempt, min(begins_s, ends_s) + shift_s, ends_s + shift_s, replica, text)

    busy = busy_bins(history)
    if not len(busy):
        return [lost("start", 0.0, history.updated_s, "nothing was encoded")]
    first_s, last_s = busy[0] * history.bin_s, (busy[-1] + 1) * history.bin_s
    found = [lost("start", 0.0, first_s, _describe_start(history))]
    found += [lost("restart", *each) for each in _restarts(history)]
    found += [lost("stall", *each, "no block was encoded") for each in _stalls(history, busy)]
    if history.outcome == "finished":
        found.append(lost("end", last_s, history.updated_s, "last writes, checks, publication"))
    return sorted((each for each in found if each.seconds > 0), key=lambda each: each.begins_s)


def busy_bins(history: History) -> NDArray[np.int64]:
    """(N,) numbers of the bins in which a block arrived."""
    return np.flatnonzero(np.array(history.rows, np.int64))


def _describe_start(history: History) -> str:
    phases = [f"{name} {history.before_s[key]:.1f} s" for key, name in _PHASES.items() if history.before_s.get(key)]
    ready_s = min((each.ready_s[0] for each in history.replicas if each.ready_s), default=None)
    first_replica = [] if ready_s is None else [f"first replica ready at {ready_s:.1f} s"]
    return ", ".join([*phases, *first_replica, "first block"])


def _restarts(history: History) -> Iterator[tuple[float, float, str, int]]:
    """(begin, end, text, replica) of each restart: from the last sign of the replica until it was ready again."""
    for replica in history.replicas:
        for ready_s in replica.ready_s[1:]:
            text = f"replica {replica.number} died and was started again on {replica.node or 'its node'}"
            yield _last_sign_s(history, replica, ready_s), ready_s, text, replica.number


def _last_sign_s(history: History, replica: ReplicaHistory, before_s: float) -> float:
    """When a replica last reported before a time: a block, the start of a part, or that it was ready."""
    blocks = (np.flatnonzero(np.array(replica.tokens, np.int64)) + 0.5) * history.bin_s
    own = [part for part in history.parts if part.replica == replica.number]
    signs = [*blocks, *(part.begun_s for part in own), *replica.ready_s]
    return float(max((sign_s for sign_s in signs if sign_s < before_s), default=before_s))


def _stalls(history: History, busy: NDArray[np.int64]) -> Iterator[tuple[float, float]]:
    """(begin, end) of the times between two blocks that are much longer than usual."""
    distances = np.diff(busy)
    if not len(distances):
        return
    least_bins = max(_STALL_DISTANCES * float(np.median(distances)), _LEAST_STALL_S / history.bin_s)
    for at in np.flatnonzero(distances > least_bins).tolist():
        yield (busy[at] + 1) * history.bin_s, busy[at + 1] * history.bin_s
