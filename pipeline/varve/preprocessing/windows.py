"""Cuts the tokens of long texts: drops what a window has no room for, or makes more windows of it. Pure numpy.

Knows nothing of tokenizers. Invariant: every window begins and ends with the tokens that stand around the text, the
special tokens and a prompt; the pieces of the text between them are those of `tokenizers`.
"""

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from varve.preprocessing.tokens import Tokens, range_index, starts_of

Index = NDArray[np.int64]


def drop_overflow(tokens: Tokens, max_tokens: int, side: Literal["left", "right"], special: tuple[int, int]) -> Tokens:
    """Truncate texts of which at most one token is too many.

    Args:
        tokens: one window per text, of at most `max_tokens + 1` tokens, without token types and spans.
        max_tokens: maximum number of tokens of a window.
        side: of the text that is dropped.
        special: number of special tokens before the text and after it.
    """
    truncated = tokens.lengths > max_tokens
    if not truncated.any():
        return tokens
    ends = tokens.cu_seqlens[1:][truncated] - 1 - special[1]
    dropped = ends if side == "right" else tokens.cu_seqlens[:-1][truncated] + special[0]
    return replace(
        tokens,
        input_ids=np.delete(tokens.input_ids, dropped),
        cu_seqlens=tokens.cu_seqlens - starts_of(truncated),
        truncated=truncated,
    )


def cut_windows(tokens: Tokens, firsts: Index, counts: Index, max_tokens: int, stride: int) -> Tokens:
    """Cut texts into windows that all have the tokens around the text.

    Neighbouring pieces of a text share `stride` tokens, and the last piece ends with the text.

    Args:
        tokens: one window per text, not truncated.
        firsts: (R,) first token of the text itself.
        counts: (R,) tokens of the text itself.
        max_tokens: maximum number of tokens of a window, with those around the text.
        stride: tokens of the text that neighbouring windows share.

    Raises:
        ValueError: a text needs a second window, and the tokens around it leave no room for it.
    """
    rooms = max_tokens - (tokens.lengths - counts)
    is_long = counts > rooms
    if not is_long.any():
        return tokens
    steps = rooms - stride
    if (steps[is_long] < 1).any():
        msg = f"a window of {max_tokens} tokens has no room for the prompt, the special tokens and a stride of {stride}"
        raise ValueError(msg)
    num_windows = np.where(is_long, 1 - (rooms - counts) // np.maximum(steps, 1), 1)
    rows = np.repeat(np.arange(len(firsts)), num_windows)
    starts = range_index(np.zeros_like(num_windows), num_windows) * steps[rows]
    lengths = np.minimum(rooms[rows], counts[rows] - starts)
    index, cu_seqlens = _window_index(tokens.cu_seqlens, firsts, counts, (rows, starts, lengths))
    return _take(tokens, index, cu_seqlens, starts_of(num_windows))


def _window_index(
    cu_texts: Index, firsts: Index, counts: Index, pieces: tuple[Index, Index, Index]
) -> tuple[Index, Index]:
    """Indices of the tokens of all windows: of the tokens before the text, a piece of the text and those after it.

    Args:
        cu_texts: (R + 1,) where the tokens of each text start.
        firsts: (R,) first token of the text itself.
        counts: (R,) tokens of the text itself.
        pieces: (W,) texts, (W,) first tokens in the text and (W,) numbers of tokens.
    """
    rows, starts, lengths = pieces
    heads, tails = firsts - cu_texts[:-1], cu_texts[1:] - firsts - counts
    range_starts = np.stack([cu_texts[rows], firsts[rows] + starts, (firsts + counts)[rows]], axis=1)
    range_lengths = np.stack([heads[rows], lengths, tails[rows]], axis=1)
    return range_index(range_starts.reshape(-1), range_lengths.reshape(-1)), starts_of(range_lengths.sum(axis=1))


def _take(tokens: Tokens, index: Index, cu_seqlens: Index, cu_windows: Index) -> Tokens:
    types, spans, sequence_ids = tokens.token_type_ids, tokens.spans, tokens.sequence_ids
    return Tokens(
        input_ids=tokens.input_ids[index],
        cu_seqlens=cu_seqlens,
        cu_windows=cu_windows,
        truncated=tokens.truncated,
        token_type_ids=None if types is None else types[index],
        spans=None if spans is None else spans[index],
        sequence_ids=None if sequence_ids is None else sequence_ids[index],
    )
