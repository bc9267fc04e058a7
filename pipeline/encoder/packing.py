"""Token-budget packs over the lengths of windows. Pure: numpy only, nothing of models or devices.

Invariants: the packs are a permutation of the windows; no pack exceeds the budget unless it holds a single window; the
result depends on the lengths and the budget alone, so a block is cut into the same packs in every run.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]


def pack(lengths: Index, budget_tokens: int, *, padded: bool = False, equal: bool = False) -> Iterator[Index]:
    """Cut windows, shortest first, into packs of at most `budget_tokens`.

    Sorting brings equal lengths together: packed attention then runs over few, large runs, and padded batches carry
    almost no padding.

    Args:
        lengths: (W,) tokens of each window.
        budget_tokens: tokens of one forward pass.
        padded: count every window as long as the longest of its pack.
        equal: let a pack hold windows of one length only (for attentions, which must see no padding).

    Yields:
        (w,) indices into `lengths`.
    """
    order = np.argsort(lengths, kind="stable")
    first = 0
    total = 0
    for at, window in enumerate(order):
        length = int(lengths[window])
        count = at - first + 1
        total += length
        size = length * count if padded else total
        if at > first and (size > budget_tokens or (equal and length != lengths[order[first]])):
            yield order[first:at]
            first, total = at, length
    if first < len(order):
        yield order[first:]


def gather(values: NDArray, offsets: Index, windows: Index) -> NDArray:
    """Lay the chosen windows of a ragged column end to end, in the order given.

    Args:
        values: (T, ...) the column's values.
        offsets: (W + 1,) where each window starts.
        windows: (w,) windows to take.
    """
    return values[token_index(offsets, windows)]


def token_index(offsets: Index, windows: Index) -> Index:
    """Positions in the ragged values of the tokens of `windows`, end to end."""
    starts = offsets[windows]
    lengths = offsets[windows + 1] - starts
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)
