"""How two vectors of a feature are compared. Invariant: of two scores, the higher one belongs to the nearer vector."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_UNIT_TOLERANCE = {"float32": 1e-4, "float16": 4e-3, "int8": 3e-2}


@dataclass(frozen=True, slots=True)
class Metric:
    """A similarity.

    Attributes:
        name: dot, cosine, euclidean (the score is the negative squared distance), or maxsim (late interaction).
        unit: all vectors have length 1, so cosine is the dot product. A target without a cosine of its own normalizes
            vectors of other lengths (`prepare`) before it stores them.
    """

    name: Literal["dot", "cosine", "euclidean", "maxsim"]
    unit: bool = False

    @property
    def normalizes(self) -> bool:
        """Whether `prepare` changes vectors."""
        return self.name == "cosine" and not self.unit

    def prepare(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, width) float32 whose dot product (for euclidean: distance) ranks as this metric does; zeros stay."""
        return to_unit_length(vectors) if self.normalizes else vectors


def to_unit_length(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, width) vectors divided by their L2 norms; zero vectors stay zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms == 0, 1, norms).astype(np.float32)


def have_unit_length(vectors: NDArray[np.float32], dtype: str) -> bool:
    """Whether the vectors that are not zero have length 1, within the precision of the dtype that stores them."""
    norms = np.linalg.norm(vectors, axis=1)
    norms = norms[norms > 0]
    return dtype in _UNIT_TOLERANCE and bool(len(norms)) and bool(abs(norms - 1).max() <= _UNIT_TOLERANCE[dtype])
