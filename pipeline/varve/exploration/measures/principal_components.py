"""Principal components of one feature: the spectrum, the effective rank, and positions in two dimensions.

Knows nothing of parts and pages. Invariant: equal vectors give equal components, with their signs.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from varve.exploration.measures.cross_products import centred_product, mean_vector


@dataclass(frozen=True, slots=True, eq=False)
class PrincipalComponents:
    """The components of a sample.

    Attributes:
        mean: (width,) float64 that is subtracted.
        variances: (width,) float64 of the components, in descending order, times the number of rows.
        axes: (2, width) float64 of length 1: the first two components, their largest value positive.
    """

    mean: NDArray[np.float64]
    variances: NDArray[np.float64]
    axes: NDArray[np.float64]

    @classmethod
    def of(cls, vectors: NDArray[np.float32]) -> Self:
        """The components of (N, width) vectors."""
        values, columns = np.linalg.eigh(centred_product(vectors, vectors))
        axes = columns.T[::-1][:2]
        largest = axes[np.arange(len(axes)), abs(axes).argmax(axis=1)]
        axes = axes * np.where(largest < 0, -1.0, 1.0)[:, None]
        return cls(mean_vector(vectors), values[::-1].clip(0), axes)

    @property
    def shares(self) -> NDArray[np.float64]:
        """(width,) shares of the variance; zeros if all vectors are equal."""
        total = self.variances.sum()
        return self.variances / total if total > 0 else np.zeros_like(self.variances)

    @property
    def effective_rank(self) -> float:
        """Exp of the entropy of the singular values divided by their sum; 0 if all vectors are equal.

        Source: Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality".
        """
        singular = np.sqrt(self.variances)
        if not singular.any():
            return 0.0
        shares = singular[singular > 0] / singular.sum()
        return float(np.exp(-(shares * np.log(shares)).sum()))

    def project(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N, 2) positions of (N, width) vectors; the second coordinate is 0 for a width of 1."""
        positions = (vectors - self.mean) @ self.axes.T
        return np.pad(positions, ((0, 0), (0, 2 - positions.shape[1])))
