"""Products of centred features in float64, block by block: what principal components and CKA are computed from.

Invariant: memory is that of the result and of two blocks of rows.
"""

import numpy as np
from numpy.typing import NDArray

_BLOCK_ROWS = 4096
MAX_WIDTH = 4096  # a product of width x width takes 128 MiB; wider features have neither components nor CKA


def mean_vector(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """(width,) float64 mean of (N, width) vectors."""
    return vectors.mean(axis=0, dtype=np.float64)


def centred_product(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """Product of two features of the same rows after their means are subtracted.

    Args:
        one: (N, A) float32.
        other: (N, B) float32.

    Returns:
        (A, B) float64.
    """
    means = mean_vector(one), mean_vector(other)
    product = np.zeros((one.shape[1], other.shape[1]))
    for start in range(0, len(one), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        block = one[rows] - means[0]
        product += block.T @ (block if other is one else other[rows] - means[1])
    return product
