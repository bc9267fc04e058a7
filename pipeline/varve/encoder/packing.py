"""Token-budget packs of windows. Pure: numpy only, nothing of models or devices.

Invariants: the packs are a permutation of the windows; no pack exceeds the budget unless it holds a single window; the
result depends on the lengths and the budget alone, so a block is cut into the same packs in every run.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from varve.preprocessing.tokenizer import Tokens

Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pack:
    """The windows of one forward pass, laid end to end, shortest first."""

    windows: Index  # (w,) where their results belong
    lengths: Index  # (w,) tokens of each, ascending
    input_ids: NDArray[np.int32]  # (t,)
    token_type_ids: NDArray[np.int32] | None = None  # (t,); None where all are 0

    @classmethod
    def of(cls, tokens: Tokens, sources: Index, windows: Index) -> Self:
        """Lay out the windows `sources` of a call, shortest first, which stand at `windows` in its results."""
        at = token_index(tokens.cu_seqlens, sources)
        types = None if tokens.token_type_ids is None else tokens.token_type_ids[at]
        return cls(windows, tokens.lengths[sources], tokens.input_ids[at], types)

    @classmethod
    def of_windows(cls, windows: Sequence[NDArray[np.int32]]) -> Self:
        """Lay out windows of token ids, shortest first."""
        lengths = np.array([len(window) for window in windows], np.int64)
        return cls(np.arange(len(windows)), lengths, np.concatenate(windows))

    @property
    def num_tokens(self) -> int:
        """Real tokens of the pack."""
        return len(self.input_ids)

    @property
    def cu_seqlens(self) -> Index:
        """(w + 1,) where each window starts: cu_seqlens."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths)])

    def select(self, some: Index) -> "Pack":
        """Some of the windows, by their place in this pack, as a pack of their own."""
        at = token_index(self.cu_seqlens, some)
        types = None if self.token_type_ids is None else self.token_type_ids[at]
        return Pack(self.windows[some], self.lengths[some], self.input_ids[at], types)

    def halves(self) -> tuple["Pack", "Pack"]:
        """Two packs of about as many tokens each, of a pack of two windows or more."""
        count = len(self.windows)
        middle = int(np.searchsorted(self.cu_seqlens, self.num_tokens // 2))
        cut = min(max(middle, 1), count - 1)
        return self.select(np.arange(cut)), self.select(np.arange(cut, count))


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
    ordered = lengths[order]
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(ordered)])
    first = 0
    while first < len(order):
        stop = len(order) if not equal else int(np.searchsorted(ordered, ordered[first], side="right"))

        def size(last: int, first: int = first) -> int:
            tokens = ordered[last] * (last - first + 1) if padded else starts[last + 1] - starts[first]
            return int(tokens)

        stop = max(first + 1, bisect_right(range(stop), budget_tokens, lo=first, key=size))
        yield order[first:stop]
        first = stop


def token_index(cu_seqlens: Index, windows: Index) -> Index:
    """Positions in the ragged values of the tokens of `windows`, end to end."""
    starts = cu_seqlens[windows]
    lengths = cu_seqlens[windows + 1] - starts
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)
