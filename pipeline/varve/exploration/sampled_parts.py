"""Which rows of an output are sampled, and from which parts, so that few bytes are read.

Knows nothing of features. Invariants: the choice is a function of the sizes of the parts and the seed; every row has
the same chance; the number of parts and of rows that are decoded are bounded, whatever the size of the output.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# A part is decoded up to its last sampled row. In a store, each column of a part is a request.
MAX_PARTS = 256


def sample_rows(
    part_rows: Sequence[int] | NDArray[np.int64], num_rows: int, max_decoded_rows: int, seed: int
) -> dict[int, NDArray[np.int64]]:
    """Draw rows without replacement.

    All parts are used if they are few and small enough. Otherwise parts are drawn systematically, with a chance
    proportional to their rows (one random offset, then equal steps, so they are spread over the run), and each gives
    the same number of rows.

    Args:
        part_rows: (P,) rows of each part.
        num_rows: of the sample; fewer if there are not so many.
        max_decoded_rows: rows of all used parts together, about.
        seed: of the draw.

    Returns:
        Number of a part → ascending positions of its sampled rows, for the parts that have some, in ascending order.
    """
    rows = np.asarray(part_rows, np.int64)
    firsts = np.concatenate([np.zeros(1, np.int64), np.cumsum(rows)])
    total, random = int(firsts[-1]), np.random.default_rng([seed, 0])
    filled = np.count_nonzero(rows)
    if filled <= MAX_PARTS and total <= max_decoded_rows:
        numbers = np.sort(random.choice(total, min(num_rows, total), replace=False))
        parts = np.searchsorted(firsts, numbers, side="right") - 1
        return {int(part): numbers[parts == part] - firsts[part] for part in np.unique(parts)}
    num_parts = int(np.clip(max_decoded_rows * filled / total, 1, min(MAX_PARTS, filled)))
    points = (random.random() + np.arange(num_parts)) * total / num_parts
    parts, part_of = np.unique(np.searchsorted(firsts, points, side="right") - 1, return_inverse=True)
    share, more = divmod(num_rows, num_parts)
    shares = np.full(num_parts, share)
    shares[random.choice(num_parts, more, replace=False)] += 1
    chosen = {}
    for part, wanted in zip(parts, np.bincount(part_of, shares).astype(np.int64), strict=True):
        if wanted:
            chosen[int(part)] = np.sort(random.choice(rows[part], min(int(wanted), int(rows[part])), replace=False))
    return chosen
