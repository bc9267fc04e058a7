"""Differences of vectors from the reference, and when they count as exact."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TOLERANCE = 2e-5  # largest difference of float32 means that are not normalised
HALF_TOLERANCE = (3e-3, 1 - 1e-5)  # largest relative difference and smallest cosine of half precision


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference of vectors from the reference."""

    largest: float  # absolute, of one value
    relative: float  # L2 norm of the difference by that of the reference
    cosine: float  # smallest cosine of a row
    mean_cosine: float

    def is_exact(self, *, half: bool = False) -> bool:
        """Whether the vectors are within the tolerance."""
        if half:
            return self.relative <= HALF_TOLERANCE[0] and self.cosine >= HALF_TOLERANCE[1]
        return self.largest <= TOLERANCE


ABSENT = Difference(float("inf"), float("inf"), -1.0, -1.0)  # of vectors that cannot be compared


def compare(vectors: NDArray[np.float32], reference: NDArray[np.float32]) -> Difference:
    """Difference of (N, D) vectors from the reference; infinite for another shape, NaN or infinity."""
    if vectors.shape != reference.shape or not np.isfinite(vectors).all():
        return ABSENT
    x, y = vectors.astype(np.float64), reference.astype(np.float64)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    cosines = (x * y).sum(1) / np.maximum(norms, 1e-30)
    relative = np.linalg.norm(x - y) / max(float(np.linalg.norm(y)), 1e-30)
    return Difference(float(np.abs(x - y).max()), float(relative), float(cosines.min()), float(cosines.mean()))
