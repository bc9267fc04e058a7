"""Packs of windows, each within a token budget. Pure numpy; knows nothing of models or devices.

Invariants: the packs are a permutation of the windows; no pack exceeds the budget unless it holds a single window; the
result depends only on the lengths and the budget, so a block is cut into the same packs in every run.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from varve.preprocessing.tokenizer import Tokens, starts_of

Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pack:
    """The w windows of one forward pass, concatenated, shortest first; t tokens in all."""

    windows: Index  # (w,) their indices in the call's results
    lengths: Index  # (w,) tokens of each window, ascending
    input_ids: NDArray[np.int32]  # (t,)
    token_type_ids: NDArray[np.int32] | None = None  # (t,); None if all are 0

    @classmethod
    def of(cls, tokens: Tokens, sources: Index, windows: Index) -> Self:
        """Pack the windows `sources` of `tokens`, shortest first; `windows` are their indices in the call's results."""
        index = token_index(tokens.cu_seqlens, sources)
        types = None if tokens.token_type_ids is None else tokens.token_type_ids[index]
        return cls(windows, tokens.lengths[sources], tokens.input_ids[index], types)

    @classmethod
    def of_windows(cls, windows: Sequence[NDArray[np.int32]]) -> Self:
        """Pack windows given as arrays of token ids, shortest first."""
        lengths = np.array([len(window) for window in windows], np.int64)
        return cls(np.arange(len(windows)), lengths, np.concatenate(windows))

    @property
    def num_tokens(self) -> int:
        """Number of tokens, t."""
        return len(self.input_ids)

    @property
    def cu_seqlens(self) -> Index:
        """(w + 1,) where each window starts in `input_ids`."""
        return starts_of(self.lengths)

    def select(self, places: Index) -> "Pack":
        """A pack of the windows at these places of this pack."""
        index = token_index(self.cu_seqlens, places)
        types = None if self.token_type_ids is None else self.token_type_ids[index]
        return Pack(self.windows[places], self.lengths[places], self.input_ids[index], types)

    def halves(self) -> tuple["Pack", "Pack"]:
        """Split a pack of two or more windows into two packs with about as many tokens each."""
        num_windows = len(self.windows)
        middle = int(np.searchsorted(self.cu_seqlens, self.num_tokens // 2))
        cut = min(max(middle, 1), num_windows - 1)
        return self.select(np.arange(cut)), self.select(np.arange(cut, num_windows))


def pack_windows(lengths: Index, budget_tokens: int, *, padded: bool = False, equal: bool = False) -> Iterator[Index]:
    """Cut windows, shortest first, into packs of at most `budget_tokens`.

    Sorting puts equal lengths next to each other: packed attention then runs over few, large runs, and padded batches
    have almost no padding.

    Args:
        lengths: (W,) tokens of each window.
        budget_tokens: maximum number of tokens of a pack.
        padded: count every window as long as the longest of its pack.
        equal: a pack holds windows of one length only (for attentions, which must not see padding).

    Yields:
        (w,) indices into `lengths`.
    """
    order = np.argsort(lengths, kind="stable")
    ordered = lengths[order]
    starts = starts_of(ordered)
    first = 0
    while first < len(order):
        stop = len(order) if not equal else int(np.searchsorted(ordered, ordered[first], side="right"))

        def num_tokens(last: int, first: int = first) -> int:
            tokens = ordered[last] * (last - first + 1) if padded else starts[last + 1] - starts[first]
            return int(tokens)

        stop = max(first + 1, bisect_right(range(stop), budget_tokens, lo=first, key=num_tokens))
        yield order[first:stop]
        first = stop


def token_index(cu_seqlens: Index, windows: Index) -> Index:
    """Indices of the tokens of `windows`, window after window, in arrays that hold all tokens."""
    starts = cu_seqlens[windows]
    lengths = cu_seqlens[windows + 1] - starts
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)
