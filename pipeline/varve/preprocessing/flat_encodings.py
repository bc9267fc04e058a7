"""Turns the encodings of `tokenizers` into flat arrays.

Knows nothing of how they were made. `tokenizers` returns ids as Python lists only; here they are copied to arrays.
"""

from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varve.preprocessing.tokens import SPECIAL, Tokens, starts_of


def collect(encodings: list[Any], *, windows: bool, types: bool, spans: bool) -> Tokens:
    """The tokens of texts.

    Args:
        encodings: one per text.
        windows: keep what overflows as further windows; otherwise it is only flagged.
        types: return token types.
        spans: return the character span of every token, and sequence ids.
    """
    overflowing = [encoding.overflowing for encoding in encodings]
    kept, counts = encodings, np.ones(len(encodings), np.int64)
    truncated = np.fromiter(map(bool, overflowing), np.bool_)
    if windows:
        kept = [window for first, rest in zip(encodings, overflowing, strict=True) for window in (first, *rest)]
        counts = np.fromiter((1 + len(rest) for rest in overflowing), np.int64)
        truncated = np.zeros(len(encodings), np.bool_)
    lengths = np.fromiter((len(window) for window in kept), np.int64, len(kept))
    total = int(lengths.sum())
    return Tokens(
        input_ids=_flatten((window.ids for window in kept), np.int32, total),
        cu_seqlens=starts_of(lengths),
        cu_windows=starts_of(counts),
        truncated=truncated,
        token_type_ids=_flatten((window.type_ids for window in kept), np.int32, total) if types else None,
        spans=_spans(kept, total) if spans else None,
        sequence_ids=_sequence_ids(kept, total) if spans else None,
    )


def count_special_tokens(raw: Any) -> tuple[int, int]:
    """How many special tokens a tokenizer puts before a text and after it."""
    is_text = [sequence is not None for sequence in raw.encode("a").sequence_ids]
    first, last = (next((at for at, of in enumerate(order) if of), 0) for order in (is_text, is_text[::-1]))
    return first, last


def _flatten(lists: Iterable[Iterable[int]], dtype: type[np.integer], total: int) -> NDArray[Any]:
    return np.fromiter(chain.from_iterable(lists), dtype, total)


def _spans(windows: list[Any], total: int) -> NDArray[np.int32]:
    pairs = chain.from_iterable(window.offsets for window in windows)
    return _flatten(pairs, np.int32, 2 * total).reshape(total, 2)


def _sequence_ids(windows: list[Any], total: int) -> NDArray[np.int8]:
    ids = chain.from_iterable(window.sequence_ids for window in windows)
    return np.fromiter((SPECIAL if sequence is None else sequence for sequence in ids), np.int8, total)
