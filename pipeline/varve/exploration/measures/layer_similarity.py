"""Similarity of features by linear CKA (Kornblith et al. 2019, "Similarity of Neural Network Representations").

Knows nothing of parts and pages. Invariant: memory is that of products of width x width, never of rows x rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from varve.exploration.measures.cross_products import MAX_WIDTH, centred_product

_MAX_FEATURES = 64
_MAX_PRODUCTS = 5e11  # multiplications of all pairs of features: about ten seconds of a core
_MIN_ROWS = 1000


@dataclass(frozen=True, slots=True, eq=False)
class LayerSimilarity:
    """Linear CKA of L features with one vector per row.

    Attributes:
        names: of the columns.
        values: (L, L) float64 from 0 to 1; 1 on the diagonal. A feature whose vectors are all equal has 0.
        num_rows: that it was computed from.
    """

    names: tuple[str, ...]
    values: NDArray[np.float64]
    num_rows: int


def compare_layers(vectors: Mapping[str, NDArray[np.float32]]) -> LayerSimilarity | None:
    """Compare all pairs of features; None if there are fewer than two.

    Very wide features and all after the 64th are left out; of many wide features, fewer rows are compared.

    Args:
        vectors: feature → (N, width) float32, of the same rows, in the order of the output.
    """
    names = [name for name, each in vectors.items() if each.shape[1] <= MAX_WIDTH][:_MAX_FEATURES]
    if len(names) < 2:
        return None
    widths = np.array([vectors[name].shape[1] for name in names], np.float64)
    num_rows = len(vectors[names[0]])
    affordable = int(_MAX_PRODUCTS / (np.outer(widths, widths).sum() / 2))
    if affordable < num_rows:  # equal steps, since rows are in the order of the output
        chosen = np.linspace(0, num_rows - 1, min(num_rows, max(affordable, _MIN_ROWS))).astype(np.int64)
        vectors = {name: vectors[name][chosen] for name in names}
        num_rows = len(chosen)
    values = np.eye(len(names))
    own = [np.linalg.norm(centred_product(vectors[name], vectors[name])) for name in names]
    for i, one in enumerate(names):
        for j, other in enumerate(names[:i]):
            product = np.linalg.norm(centred_product(vectors[one], vectors[other])) ** 2
            values[i, j] = values[j, i] = product / (own[i] * own[j]) if own[i] * own[j] > 0 else 0.0
    return LayerSimilarity(tuple(names), values, num_rows)
