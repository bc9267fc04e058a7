"""The speed of a run and the time it still needs, from tokens that arrive in blocks. Pure: the clock is an argument.

Between two blocks of a replica nothing arrives, and several replicas may bring theirs at once. So each replica is
measured from arrival to arrival, and credited with the part of its present block that it must have done: the time left
counts down with the clock, and does not jump when a block arrives. What remains of a jump is spread over some seconds.
"""

import math
from collections import deque
from collections.abc import Mapping
from itertools import pairwise

# Arrivals that a speed is measured over: the last minute, but at least so many.
_WINDOW_S = 60.0
_MIN_ARRIVALS = 6
# The time left approaches a new estimate within this share of the time measured so far, at most within so many seconds.
_SETTLING_SHARE, _MAX_SETTLING_S = 0.25, 20.0


class ArrivalRate:
    """Measures one run."""

    def __init__(self) -> None:
        """Start without arrivals."""
        self._replicas: dict[int, _Replica] = {}
        self._began_s: float | None = None  # the clock at the first arrival
        self._shown: tuple[float, float] | None = None  # the clock, and the seconds left that were returned then

    def observe(self, clock_s: float, tokens: Mapping[int, int]) -> None:
        """Take the tokens that each replica has delivered in all by `clock_s`."""
        for number, count in tokens.items():
            if count:
                self._began_s = clock_s if self._began_s is None else self._began_s
                self._replicas.setdefault(number, _Replica()).observe(clock_s, count)

    def tokens_per_s(self, clock_s: float) -> float | None:
        """Tokens per second of all replicas; None before the second block of the first one."""
        speeds = [speed for replica in self._replicas.values() if (speed := replica.tokens_per_s(clock_s))]
        return sum(speeds) / len(speeds) * len(self._replicas) if speeds else None

    def seconds_left(self, clock_s: float, tokens: float) -> float | None:
        """Seconds until this many more tokens have arrived; None before the second block of the first replica."""
        speed = self.tokens_per_s(clock_s)
        if not speed:
            return None
        under_way = sum(replica.under_way(clock_s) for replica in self._replicas.values())
        left_s = self._settle(clock_s, max(0.0, tokens - under_way) / speed)
        self._shown = clock_s, left_s
        return left_s

    def _settle(self, clock_s: float, left_s: float) -> float:
        """Between the new estimate and the last one, counted down."""
        if self._shown is None or self._began_s is None or clock_s <= self._began_s:
            return left_s
        passed_s = clock_s - self._shown[0]
        counted_down_s = max(0.0, self._shown[1] - passed_s)
        settling_s = min(_SETTLING_SHARE * (clock_s - self._began_s), _MAX_SETTLING_S)
        return left_s + (counted_down_s - left_s) * math.exp(-passed_s / settling_s)


class _Replica:
    """The blocks of one replica."""

    def __init__(self) -> None:
        self._arrivals: deque[tuple[float, int]] = deque()  # (clock, tokens delivered by then)

    def observe(self, clock_s: float, tokens: int) -> None:
        if self._arrivals and tokens <= self._arrivals[-1][1]:
            return
        self._arrivals.append((clock_s, tokens))
        while len(self._arrivals) > _MIN_ARRIVALS and clock_s - self._arrivals[0][0] > _WINDOW_S:
            self._arrivals.popleft()

    def tokens_per_s(self, clock_s: float) -> float:
        """0 before the second block; falls if the present block takes longer than any before."""
        (first_s, first), (last_s, last) = self._arrivals[0], self._arrivals[-1]
        late_s = max(0.0, clock_s - last_s - self._longest_s())
        return (last - first) / (last_s - first_s + late_s) if len(self._arrivals) > 1 else 0.0

    def under_way(self, clock_s: float) -> float:
        """Tokens of the present block that it must have encoded."""
        return self.tokens_per_s(clock_s) * min(clock_s - self._arrivals[-1][0], self._longest_s())

    def _longest_s(self) -> float:
        return max((after - before for (before, _), (after, _) in pairwise(self._arrivals)), default=0.0)
