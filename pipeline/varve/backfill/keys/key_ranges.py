"""Ranges of keys, to find the files that can hold a key without opening them.

Knows nothing of files. Invariant: when ranges cannot be compared or are unknown, everything overlaps.
"""

from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

KeyRange = tuple[Any, Any] | None


class KeyRanges:
    """A union of ranges, both bounds inclusive."""

    def __init__(self, ranges: Iterable[KeyRange]) -> None:
        """Join the ranges; None is an unknown range, with which everything overlaps."""
        self._starts: list[Any] = []
        self._stops: list[Any] = []
        self._unknown = False
        try:
            self._join(ranges)
        except TypeError:
            self._unknown = True

    def _join(self, ranges: Iterable[KeyRange]) -> None:
        known: list[tuple[Any, Any]] = []
        for each in ranges:
            if each is None:
                self._unknown = True
                return
            known.append((each[0], each[1]))
        for start, stop in sorted(known):
            if self._stops and start <= self._stops[-1]:
                self._stops[-1] = max(stop, self._stops[-1])
            else:
                self._starts.append(start)
                self._stops.append(stop)

    def overlap(self, other: KeyRange) -> bool:
        """Whether a key of another range may be in one of these."""
        if self._unknown:
            return True
        if not self._starts:
            return False
        if other is None:
            return True
        try:
            last = bisect_right(self._starts, other[1]) - 1
            return last >= 0 and bool(self._stops[last] >= other[0])
        except TypeError:
            return True
