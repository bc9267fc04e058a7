"""The faults that last at present, each until its time is over; a fault counts when it has ended, if it hit something.

Invariant: none lasts longer than the driver that it was meant for.
"""

import time
from collections import Counter
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from tests.faults.chaos.faults import FAULTS, End

if TYPE_CHECKING:
    from tests.faults.chaos.trial import Trial


@dataclass(frozen=True)
class _Lasting:
    """A fault that has begun; `until` is a time of the monotonic clock."""

    name: str
    end: End
    until: float


class Ongoing:
    """Begins and ends the faults of one trial.

    Args:
        counts: of faults by name, to which this adds.
    """

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts
        self._lasting: list[_Lasting] = []

    def begin(self, name: str, trial: "Trial", draw: Random) -> bool:
        """Returns False if there was nothing to do it to."""
        fault = FAULTS[name]
        self._end([each for each in self._lasting if fault.is_alone or each.name == name])
        end = fault.begin(trial, draw)
        if end is None:
            return False
        self._lasting.append(_Lasting(name, end, time.monotonic() + draw.uniform(*fault.lasts_s)))
        self.end_due()
        return True

    def seconds_left(self) -> float:
        """Until the next one ends."""
        return min((each.until for each in self._lasting), default=float("inf")) - time.monotonic()

    def end_due(self) -> None:
        """End those whose time is over."""
        self._end([each for each in self._lasting if each.until <= time.monotonic()])

    def end_all(self) -> None:
        """End them now."""
        self._end(self._lasting)

    def _end(self, ended: list[_Lasting]) -> None:
        self._lasting = [each for each in self._lasting if each not in ended]
        for each in ended:
            if each.end():
                self._counts[each.name] += 1
