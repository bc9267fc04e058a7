"""Tokenizes with a fast implementation, and compares some texts of every call with `tokenizers`.

Knows nothing of how the implementation was chosen. Invariant: the tokens of a call are returned only if those of the
compared texts are equal.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from varve.errors import RunError
from varve.preprocessing.fast_tokenizer import FastTokenizer, Side
from varve.preprocessing.leading_text import read_leading
from varve.preprocessing.token_check import checked_rows, describe_difference
from varve.preprocessing.tokens import Tokens
from varve.preprocessing.windows import cut_windows, drop_overflow

# Texts that are compared: of the first call, and one in so many of the others up to a maximum. One in a thousand costs
# about 3 % of the time of a fast implementation.
_FIRST_COMPARED, _COMPARED_EVERY, _MOST_COMPARED = 32, 1024, 4
_COMPARED_CHARACTERS = 2**16  # a longer text is compared only if its beginning suffices


@dataclass(frozen=True, slots=True)
class Cut:
    """What happens to long texts."""

    max_tokens: int  # of a window, with special tokens
    windows: bool  # cut them into windows; otherwise truncate them
    stride: int  # tokens that neighbouring windows share
    side: Side  # that is dropped of a truncated text
    num_special: tuple[int, int]  # special tokens before the text and after it
    reads_start: bool  # the beginning of a text suffices, see `leading_text.can_cut`


class FastPath:
    """A fast implementation with the result of `tokenizers`."""

    def __init__(self, fast: FastTokenizer, cut: Cut, reference: Callable[[Sequence[str]], Tokens]) -> None:
        """Combine them.

        Args:
            fast: the implementation.
            cut: what happens to long texts.
            reference: tokenizes texts with `tokenizers`, with the same cut.
        """
        self._fast, self._cut, self._reference = fast, cut, reference
        self._was_compared = False

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Tokenize texts.

        Raises:
            RunError: `tokenizers` gives other tokens.
        """
        tokens = self._encode(texts)
        self._compare(texts, tokens)
        return tokens

    def _encode(self, texts: Sequence[str]) -> Tokens:
        """Of a text that is truncated, the fast implementation is asked for one token too many."""
        cut = self._cut
        limit = None if cut.windows else cut.max_tokens + 1
        read = read_leading(texts, cut.max_tokens) if cut.reads_start else texts
        ids, starts = self._fast.encode(read, limit, cut.side)
        if read is not texts and _needs_more(read, texts, np.diff(starts) <= cut.max_tokens):
            ids, starts = self._fast.encode(texts, limit, cut.side)
        tokens = Tokens(ids, starts, np.arange(len(starts)), np.zeros(len(texts), np.bool_))
        if not cut.windows:
            return drop_overflow(tokens, cut.max_tokens, cut.side, cut.num_special)
        before, after = cut.num_special
        return cut_windows(tokens, starts[:-1] + before, tokens.lengths - before - after, cut.max_tokens, cut.stride)

    def _compare(self, texts: Sequence[str], tokens: Tokens) -> None:
        most = min(_MOST_COMPARED, max(1, len(texts) // _COMPARED_EVERY)) if self._was_compared else _FIRST_COMPARED
        rows: list[int] = checked_rows(len(texts), most, len(tokens.input_ids)).tolist()
        chosen = [texts[row] for row in rows]
        read = read_leading(chosen, self._cut.max_tokens) if self._cut.reads_start else chosen
        rows = [row for row, text in zip(rows, read, strict=True) if len(text) <= _COMPARED_CHARACTERS]
        want = self._reference([texts[row] for row in rows])
        for index, row in enumerate(rows):
            got_windows, want_windows = tokens.windows_of(row), want.windows_of(index)
            if got_windows != want_windows or tokens.truncated[row] != want.truncated[index]:
                ids = ([token for window in windows for token in window] for windows in (got_windows, want_windows))
                raise RunError(_differs(describe_difference(self._fast.name, texts[row], *ids), row))
        self._was_compared = True


def _needs_more(read: Sequence[str], texts: Sequence[str], is_short: NDArray[np.bool_]) -> bool:
    """Whether the beginning of a text has too few tokens for a window."""
    return any(len(read[row]) < len(texts[row]) for row in np.flatnonzero(is_short).tolist())


def _differs(difference: str, row: int) -> str:
    return (
        f"two tokenizers disagree about text {row} of a block: {difference}. Nothing of this block was written, but "
        "features that were written before may be wrong. Set compute.fast_tokenizer: false, and write to a new output"
    )
