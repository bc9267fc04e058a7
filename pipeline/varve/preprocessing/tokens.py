"""The tokens of a block of texts as flat arrays, and arithmetic on consecutive pieces of arrays. Pure numpy.

Knows nothing of tokenizers. Invariant: every text has at least one window, and the windows of a text are consecutive.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Values of `sequence_ids` of tokens that are not part of a text.
SPECIAL, PROMPT, EXPANSION = -1, -2, -3


@dataclass(frozen=True, slots=True)
class Tokens:
    """The windows of R texts, concatenated; W windows, T tokens and C chunks in all."""

    input_ids: NDArray[np.int32]  # (T,)
    cu_seqlens: NDArray[np.int64]  # (W + 1,) where each window starts in `input_ids`
    cu_windows: NDArray[np.int64]  # (R + 1,) where the windows of each text start
    truncated: NDArray[np.bool_]  # (R,) tokens of the text were dropped
    token_type_ids: NDArray[np.int32] | None = None  # (T,); None if all are 0
    spans: NDArray[np.int32] | None = None  # (T, 2) characters [start, stop) of each token in its text
    sequence_ids: NDArray[np.int8] | None = None  # (T,) 0 first text, 1 second; SPECIAL, PROMPT or EXPANSION
    attended: NDArray[np.int64] | None = None  # (W,) first tokens that the others attend to; None: all of them
    cu_chunks: NDArray[np.int64] | None = None  # (W + 1,) where the chunks of each window start; None without chunks
    chunk_tokens: NDArray[np.int32] | None = None  # (C, 2) tokens [first, stop) of each chunk in its window
    chunk_spans: NDArray[np.int32] | None = None  # (C, 2) characters [start, stop) of each chunk in its text

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(W,) tokens of each window."""
        return np.diff(self.cu_seqlens)

    @property
    def num_tokens(self) -> NDArray[np.int32]:
        """(R,) tokens of each text, summed over its windows."""
        return np.diff(self.cu_seqlens[self.cu_windows]).astype(np.int32)

    def windows_of(self, row: int) -> list[list[int]]:
        """The ids of each window of a text, for tests and messages."""
        starts = self.cu_seqlens[self.cu_windows[row] : self.cu_windows[row + 1] + 1]
        return [self.input_ids[start:stop].tolist() for start, stop in pairwise(starts.tolist())]


def starts_of(lengths: NDArray[Any]) -> NDArray[np.int64]:
    """(N + 1,) where each of N consecutive pieces starts, and where the last one ends."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def range_index(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The indices of N ranges, range after range: `lengths[i]` indices from `starts[i]`."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


def find_runs(marked: NDArray[np.bool_], cu_seqlens: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The marked elements of N consecutive pieces.

    Args:
        marked: (T,) elements; those of a piece are next to each other.
        cu_seqlens: (N + 1,) where each piece starts.

    Returns:
        (N,) index of the first marked element of each piece, or its end if none is marked; (N,) number of them.
    """
    counts = starts_of(marked)[cu_seqlens]
    places = np.append(np.flatnonzero(marked), 0)
    num_marked = np.diff(counts)
    return np.where(num_marked > 0, places[counts[:-1]], cu_seqlens[1:]), num_marked
