"""Marks the tokens of a prompt, and repeats them in every window of a long text. Pure numpy.

Knows nothing of tokenizers. Invariant: spans are relative to the text without the prompt. A token with characters of
both belongs to the text.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from varve.preprocessing.tokens import PROMPT, Tokens, find_runs, range_index, starts_of

Index = NDArray[np.int64]


def mark_prompt(tokens: Tokens, prompt_characters: int) -> Tokens:
    """Give the tokens of the prompt the sequence id `PROMPT`, and count spans from the end of the prompt.

    Args:
        tokens: of the prompt and the text as one string, with spans and sequence ids.
        prompt_characters: length of the prompt.
    """
    assert tokens.spans is not None
    assert tokens.sequence_ids is not None
    is_text = tokens.sequence_ids >= 0
    firsts, _ = find_runs(is_text & (tokens.spans[:, 1] > prompt_characters), tokens.cu_seqlens)
    is_prompt = is_text & (np.arange(len(is_text)) < np.repeat(firsts, tokens.lengths))
    return replace(
        tokens,
        spans=np.maximum(tokens.spans - np.int32(prompt_characters), np.int32(0)),
        sequence_ids=np.where(is_prompt, np.int8(PROMPT), tokens.sequence_ids),
    )


def cut_with_prompt(tokens: Tokens, max_tokens: int, stride: int) -> Tokens:
    """Cut texts into windows that all begin with the special tokens and the prompt, and end with the special tokens.

    The pieces of the text between them are those of `tokenizers`: neighbours share `stride` tokens, and the last piece
    ends with the text. `tokenizers` itself would repeat the special tokens only.

    Args:
        tokens: one window per text, not truncated, from `mark_prompt`.
        max_tokens: maximum number of tokens of a window, with special tokens and prompt.
        stride: tokens of the text that neighbouring windows share.

    Raises:
        ValueError: a text needs a second window, and the prompt has no room for it in a window.
    """
    assert tokens.sequence_ids is not None
    firsts, counts = find_runs(tokens.sequence_ids >= 0, tokens.cu_seqlens)
    rooms = max_tokens - (tokens.lengths - counts)
    steps = rooms - stride
    is_long = counts > rooms
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
