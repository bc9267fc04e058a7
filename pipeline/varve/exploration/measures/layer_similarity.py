"""Similarity of features by linear CKA (Kornblith et al. 2019, "Similarity of Neural Network Representations").

Knows nothing of parts and pages. Invariant: memory is that of products of width x width, never of rows x rows.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class LayerSimilarity:
    """Linear CKA of L features with one vector per row.

    Attributes:
        names: of the columns.
        values: (L, L) float64 from 0 to 1; 1 on the diagonal.
    """

    names: tuple[str, ...]
    values: NDArray[np.float64]
