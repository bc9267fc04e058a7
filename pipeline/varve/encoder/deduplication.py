"""Which windows of a call are alike, so that each is encoded once. Pure numpy.

Invariant: windows count as alike only if all their token ids and token types are equal; the hash finds candidates, the
comparison decides.
"""

import numpy as np
from numpy.typing import NDArray

from varve.encoder.packing import Index, token_index
from varve.preprocessing.tokenizer import Tokens


def find_distinct(tokens: Tokens) -> tuple[Index, Index]:
    """Find the windows that differ from each other.

    Args:
        tokens: W windows, none of them empty.

    Returns:
        (U,) the first window of each kind, in order, and (W,) for each window which of these it is like.
    """
    num_windows = len(tokens.lengths)
    every = np.arange(num_windows)
    if num_windows < 2:  # alone, nothing has a like
        return every, every
    _, first, kind = np.unique(_hashes(tokens), return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    distinct, of = first[order], place[kind]
    likes = np.flatnonzero(distinct[of] != every)
    return (distinct, of) if _are_equal(tokens, likes, distinct[of[likes]]) else (every, every)


def _hashes(tokens: Tokens) -> NDArray[np.uint64]:
    """(W,) multilinear hashes modulo 2^64 of length, ids and types.

    Source: Lemire & Kaser 2014, Strongly universal string hashing is fast, section 3 (multilinear).
    """
    lengths = tokens.lengths
    draw = np.random.default_rng(0)
    factors = draw.integers(1, 2**64 - 1, int(lengths.max()) + 1, np.uint64) | np.uint64(1)
    place = np.arange(len(tokens.input_ids)) - np.repeat(tokens.cu_seqlens[:-1], lengths)
    values = tokens.input_ids.astype(np.uint64)
    if tokens.token_type_ids is not None:
        values |= tokens.token_type_ids.astype(np.uint64) << np.uint64(32)
    sums = np.add.reduceat(values * factors[place], tokens.cu_seqlens[:-1])
    return sums + lengths.astype(np.uint64) * factors[-1]


def _are_equal(tokens: Tokens, some: Index, others: Index) -> bool:
    """Whether the windows are equal pair by pair."""
    if not np.array_equal(tokens.lengths[some], tokens.lengths[others]):
        return False
    here, there = token_index(tokens.cu_seqlens, some), token_index(tokens.cu_seqlens, others)
    types = tokens.token_type_ids
    same_types = types is None or np.array_equal(types[here], types[there])
    return same_types and np.array_equal(tokens.input_ids[here], tokens.input_ids[there])
