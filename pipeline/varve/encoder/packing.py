"""Packs of windows, each within a token budget. Pure numpy; knows nothing of models or devices.

Invariants: the packs are a permutation of the windows; no pack exceeds the budget unless it holds a single window; the
result depends only on the lengths and the budget, so a block is cut into the same packs in every run.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from varve.preprocessing.tokens import Tokens, range_index, starts_of

Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pack:
    """The w windows of one forward pass, concatenated, shortest first; t tokens in all."""

    windows: Index  # (w,) their indices in the call's results
    lengths: Index  # (w,) tokens of each window, ascending
    input_ids: NDArray[np.int32]  # (t,)
    token_type_ids: NDArray[np.int32] | None = None  # (t,); None if all are 0
    attended: Index | None = None  # (w,) first tokens of each window that the others attend to; None: all of them
    chunk_tokens: NDArray[np.int32] | None = None  # (c, 2) tokens [first, stop) of each chunk in its window
    chunk_counts: Index | None = None  # (w,) chunks of each window; None without chunks

    @classmethod
    def of(cls, tokens: Tokens, sources: Index, windows: Index) -> Self:
        """Pack the windows `sources` of `tokens`, shortest first; `windows` are their indices in the call's results."""
        index = token_index(tokens.cu_seqlens, sources)
        cu_chunks, chunk_tokens = tokens.cu_chunks, tokens.chunk_tokens
        return cls(
            windows,
            tokens.cu_seqlens[sources + 1] - tokens.cu_seqlens[sources],
            tokens.input_ids[index],
            _take(tokens.token_type_ids, index),
            attended=_take(tokens.attended, sources),
            chunk_tokens=None if cu_chunks is None else _take(chunk_tokens, token_index(cu_chunks, sources)),
            chunk_counts=None if cu_chunks is None else np.diff(cu_chunks)[sources],
        )

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

    def chunk_index(self) -> tuple[Index, Index]:
        """The tokens of the chunks, so that any pooling of (t, ...) values works on those of chunks.

        Returns:
            Indices into `input_ids` of the tokens of all chunks, chunk after chunk; a token is there once for each of
            its chunks. (c + 1,) where each chunk starts in these.
        """
        assert self.chunk_tokens is not None
        assert self.chunk_counts is not None
        firsts, stops = self.chunk_tokens.astype(np.int64).T
        lengths = stops - firsts
        return range_index(firsts + np.repeat(self.cu_seqlens[:-1], self.chunk_counts), lengths), starts_of(lengths)

    def select(self, places: Index) -> "Pack":
        """A pack of the windows at these places of this pack."""
        index = token_index(self.cu_seqlens, places)
        counts = self.chunk_counts
        return Pack(
            self.windows[places],
            self.lengths[places],
            self.input_ids[index],
            _take(self.token_type_ids, index),
            attended=_take(self.attended, places),
            chunk_tokens=None if counts is None else _take(self.chunk_tokens, token_index(starts_of(counts), places)),
            chunk_counts=_take(counts, places),
        )

    def halves(self) -> tuple["Pack", "Pack"]:
        """Split a pack of two or more windows into two packs with about as many tokens each."""
        num_windows = len(self.windows)
        middle = int(np.searchsorted(self.cu_seqlens, self.num_tokens // 2))
        first, second = self.split([min(max(middle, 1), num_windows - 1), num_windows])
        return first, second

    def split(self, stops: Sequence[int]) -> Iterator["Pack"]:
        """Packs of consecutive windows, up to each of `stops`, without a copy."""
        starts, counts = self.cu_seqlens, self.chunk_counts
        cu_chunks = None if counts is None else starts_of(counts)
        first = 0
        for stop in stops:
            windows, tokens = slice(first, stop), slice(starts[first], starts[stop])
            chunks = None if cu_chunks is None else slice(cu_chunks[first], cu_chunks[stop])
            yield Pack(
                self.windows[windows],
                self.lengths[windows],
                self.input_ids[tokens],
                _take(self.token_type_ids, tokens),
                attended=_take(self.attended, windows),
                chunk_tokens=None if chunks is None else _take(self.chunk_tokens, chunks),
                chunk_counts=_take(counts, windows),
            )
            first = stop


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
    ordered = lengths[order].tolist()
    starts = starts_of(lengths[order]).tolist()
    first = 0
    while first < len(order):
        stop = bisect_right(ordered, ordered[first], lo=first) if equal else len(order)
        if padded:
            stop = bisect_right(range(stop), budget_tokens, lo=first, key=partial(_padded_tokens, ordered, first))
        else:  # from the first window's start to the stop's start
            stop = min(stop, bisect_right(starts, starts[first] + budget_tokens, lo=first) - 1)
        stop = max(first + 1, stop)
        yield order[first:stop]
        first = stop


def _padded_tokens(ordered: list[int], first: int, last: int) -> int:
    """Tokens of a padded batch of the windows from `first` to `last`, which is the longest."""
    return ordered[last] * (last - first + 1)


def token_index(cu_seqlens: Index, windows: Index) -> Index:
    """Indices of the tokens of `windows`, window after window, in arrays that hold all tokens."""
    starts = cu_seqlens[windows]
    return range_index(starts, cu_seqlens[windows + 1] - starts)


def _take(values: NDArray[Any] | None, index: Index | slice) -> NDArray[Any] | None:
    return None if values is None else values[index]
