"""Connected components of pairs that arrive in batches. Pure numpy.

Invariant: the root of a group is its smallest member, so the result does not depend on the order of the pairs.
"""

import numpy as np
from numpy.typing import NDArray


class Groups:
    """A partition of the numbers 0 to N - 1, in which each number is alone at first."""

    def __init__(self, size: int) -> None:
        """Start with N groups of one member."""
        self._parents = np.arange(size, dtype=np.int64)

    def join(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
        """Put the two numbers of each pair into one group."""
        while True:
            low, high = self._roots(one), self._roots(other)
            low, high = np.minimum(low, high), np.maximum(low, high)
            if (apart := low != high).any():
                np.minimum.at(self._parents, high[apart], low[apart])
            else:
                return

    def _roots(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        while not np.array_equal(parents := self._parents[numbers], numbers):
            numbers = parents
        return numbers

    def sizes(self) -> NDArray[np.int64]:
        """Members of each group of two or more, the group with the smallest member first."""
        counts = np.bincount(self._roots(np.arange(len(self._parents))))
        return counts[counts > 1]
