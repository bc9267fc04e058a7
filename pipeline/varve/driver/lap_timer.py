"""Seconds of the phases of a run."""

import time


class LapTimer:
    """Measures the phases of a run, one after the other.

    Attributes:
        started_at: Unix time of its start, in seconds.
        laps: phase → seconds.
    """

    def __init__(self) -> None:
        self.started_at = time.time()
        self._last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """End a phase; the next one begins."""
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now
