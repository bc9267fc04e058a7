"""Weighted ridge regression of the tokens of blocks on a few terms, from sums over the blocks. Pure.

A block of R rows has tokens y and terms x, which are sums over its rows; y = x · coefficients, with an error whose
variance is proportional to R. The prior (ridge regression, Hoerl and Kennard 1970) decides as long as blocks are few or
vary more than the terms explain. Older blocks weigh less. Memory and time do not depend on the number of blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# The weight of a block is (rows up to it / rows so far) to this power.
_FORGETTING = 1.0
# What a fit starts from: the spread of single rows' tokens, in means, and how many blocks that counts as.
_PRIOR_SPREAD, _PRIOR_BLOCKS = 0.5, 4
# Errors that follow each other, as of texts that come in clusters, say as much as so many independent ones.
_INDEPENDENT = 6


@dataclass(frozen=True, slots=True)
class BlockSums:
    """Weighted sums over blocks. Tuples, so that two of them can be compared.

    Attributes:
        products: Σ x xᵀ / R, by rows.
        moments: Σ x y / R.
        squares: Σ y² / R.
        steps: Σ R (change of y / R since the previous block)² / 2.
        blocks: Σ 1.
        rows: Σ R.
        tokens: Σ y.
    """

    products: tuple[float, ...]
    moments: tuple[float, ...]
    squares: float = 0.0
    steps: float = 0.0
    blocks: float = 0.0
    rows: float = 0.0
    tokens: float = 0.0

    def fit(self, means: Sequence[float], spreads: Sequence[float]) -> NDArray[np.float64]:
        """(T,) coefficients.

        Args:
            means: (T,) of the prior.
            spreads: (T,) standard deviations of the prior; infinite for a term without one.
        """
        moments, prior = np.array(self.moments), np.array(means, float)
        products = np.array(self.products).reshape(len(moments), -1)
        precision = np.array(spreads, float) ** -2.0
        least = max((_PRIOR_SPREAD * self.tokens / self.rows) ** 2, 1e-9)
        variance, fitted = least, prior
        for _ in range(3):  # the variance follows from the fit, and the fit from the variance
            fitted = np.linalg.solve(products / variance + np.diag(precision), moments / variance + precision * prior)
            error = max(0.0, self.squares - 2 * fitted @ moments + fitted @ products @ fitted) + _PRIOR_BLOCKS * least
            clustered = max(0.0, 1 - (self.steps + _PRIOR_BLOCKS * least) / error)
            variance = error / (self.blocks + _PRIOR_BLOCKS) * (1 + clustered * self.blocks / _INDEPENDENT)
        return np.asarray(fitted, np.float64)


class BlockRegression:
    """Adds up blocks."""

    def __init__(self, num_terms: int) -> None:
        """Start without blocks."""
        self._products, self._moments = np.zeros((num_terms, num_terms)), np.zeros(num_terms)
        self._others = np.zeros(5)  # the other fields of `BlockSums`, in their order
        self._mean: float | None = None  # of the previous block
        self._rows = 0

    def add(self, terms: NDArray[np.float64], rows: int, tokens: int) -> None:
        """Add a block.

        Args:
            terms: (T,).
            rows: at least 1.
            tokens: of the block.
        """
        mean = tokens / rows
        step = 0.0 if self._mean is None else rows * (mean - self._mean) ** 2 / 2
        kept = (self._rows / (self._rows + rows)) ** _FORGETTING
        self._products = kept * self._products + np.outer(terms, terms) / rows
        self._moments = kept * self._moments + terms * mean
        self._others = kept * self._others + (tokens * mean, step, 1.0, rows, tokens)
        self._mean, self._rows = mean, self._rows + rows

    def sums(self) -> BlockSums:
        """The present sums."""
        return BlockSums(tuple(self._products.ravel().tolist()), tuple(self._moments.tolist()), *self._others.tolist())
