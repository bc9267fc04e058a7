"""Sums per bin of time of many series, in a bounded number of bins: when they are full, bins double their width.

Pure: times are arguments. Invariant: the sum over the bins of a series is the sum of what was added to it, exactly
for integers, however often the bins have doubled.
"""

import numpy as np
from numpy.typing import NDArray

from varve.monitoring.run_history import MAX_BINS

# Cells of all series together: with 1,024 series there are 128 bins.
_MAX_CELLS = 2**17
_FEWEST_BINS = 16


class TimeBins:
    """Series of one kind over the same bins.

    Attributes:
        width_s: width of the bins in seconds.
    """

    def __init__(self, num_series: int, dtype: type[np.generic], width_s: float = 1.0) -> None:
        """Zeros of `num_series` series, whose number may grow."""
        self.width_s = width_s
        self._cells: NDArray = np.zeros((max(1, num_series), MAX_BINS), dtype)  # (S, B)
        self._num_bins = MAX_BINS
        self._latest_s = 0.0  # the latest time that was added; it must stay in a bin when there are fewer bins

    def add(self, series: int, value: float, since_s: float, until_s: float) -> None:
        """Spread a value evenly over an interval; a series beyond the present ones is created.

        Args:
            series: row of the result.
            value: an integer, if the series are integers.
            since_s: start of the interval, at least 0.
            until_s: its end; the whole value goes there if it is not after the start.
        """
        self._make_room(series, until_s)
        row = self._cells[series]
        first, last = int(min(since_s, until_s) / self.width_s), int(until_s / self.width_s)
        if first == last:
            row[last] += value
            return
        edges_s = np.arange(first, last + 2) * self.width_s
        shares = (np.clip(edges_s, since_s, until_s) - since_s) / (until_s - since_s) * value  # cumulative
        if row.dtype.kind == "i":
            shares = np.rint(shares).astype(row.dtype)
        row[first : last + 1] += np.diff(shares)

    def reach(self, until_s: float) -> None:
        """Widen the bins until this time is in one."""
        self._latest_s = max(self._latest_s, until_s)
        while self._latest_s >= self._num_bins * self.width_s:
            self._fold()

    def widen(self, width_s: float) -> None:
        """Double the width until it is `width_s`."""
        while self.width_s < width_s:
            self._fold()

    def sums(self, until_s: float) -> NDArray:
        """(S, B) sums of the bins up to the one that holds `until_s`."""
        return self._cells[:, : int(until_s / self.width_s) + 1]

    def _make_room(self, series: int, until_s: float) -> None:
        if series >= len(self._cells):
            grown = np.zeros((max(series + 1, 2 * len(self._cells)), MAX_BINS), self._cells.dtype)
            grown[: len(self._cells)] = self._cells
            self._cells = grown
        while self._num_bins > _FEWEST_BINS and self._num_bins * (series + 1) > _MAX_CELLS:
            self._num_bins //= 2
        self.reach(until_s)

    def _fold(self) -> None:
        half = MAX_BINS // 2
        self._cells[:, :half] = self._cells[:, ::2] + self._cells[:, 1::2]
        self._cells[:, half:] = 0
        self.width_s *= 2
