"""Marks the tokens of a prompt, and repeats them in every window of a long text. Pure numpy.

Knows nothing of tokenizers. Invariant: spans are relative to the text without the prompt. A token with characters of
both belongs to the text.
"""

from dataclasses import replace

import numpy as np

from varve.preprocessing.tokens import PROMPT, Tokens, find_runs
from varve.preprocessing.windows import cut_windows


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

    `tokenizers` itself would repeat the special tokens only.

    Args:
        tokens: one window per text, not truncated, from `mark_prompt`.
        max_tokens: maximum number of tokens of a window, with special tokens and prompt.
        stride: tokens of the text that neighbouring windows share.

    Raises:
        ValueError: a text needs a second window, and the prompt has no room for it in a window.
    """
    assert tokens.sequence_ids is not None
    firsts, counts = find_runs(tokens.sequence_ids >= 0, tokens.cu_seqlens)
    return cut_windows(tokens, firsts, counts, max_tokens, stride)
