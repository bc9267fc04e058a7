"""Finds equal windows of a call, so that each distinct window is encoded once. Pure numpy.

Invariant: windows count as equal only if all their token ids, their token types and the tokens that are attended to are
equal. A hash finds candidates; a comparison confirms them.
"""

import numpy as np
from numpy.typing import NDArray

from varve.encoder.packing import Index, token_index
from varve.preprocessing.tokens import Tokens


def find_distinct(tokens: Tokens) -> tuple[Index, Index]:
    """Find the distinct windows.

    Args:
        tokens: W windows, none of them empty.

    Returns:
        (U,) indices of the distinct windows, ascending, and the (W,) inverse: for each window the place of its equal
        among these. If hashes collide, every window counts as distinct. So does every window with chunks, because
        windows with equal tokens may be cut into different chunks.
    """
    every = np.arange(len(tokens.lengths))
    if len(every) < 2 or tokens.cu_chunks is not None:
        return every, every
    _, firsts, groups = np.unique(_hashes(tokens), return_index=True, return_inverse=True)
    originals = firsts[groups]  # for each window the first one with its hash
    repeats = np.flatnonzero(originals != every)
    if not _are_equal(tokens, repeats, originals[repeats]):
        return every, every
    return np.unique(originals, return_inverse=True)


def _hashes(tokens: Tokens) -> NDArray[np.uint64]:
    """(W,) multilinear hashes modulo 2^64 of length, ids, types and attended tokens.

    Source: Lemire & Kaser 2014, Strongly universal string hashing is fast, section 3 (multilinear).
    """
    lengths = tokens.lengths
    generator = np.random.default_rng(0)
    factors = generator.integers(1, 2**64 - 1, int(lengths.max()) + 2, np.uint64) | np.uint64(1)
    positions = np.arange(len(tokens.input_ids)) - np.repeat(tokens.cu_seqlens[:-1], lengths)
    values = tokens.input_ids.astype(np.uint64)
    if tokens.token_type_ids is not None:
        values |= tokens.token_type_ids.astype(np.uint64) << np.uint64(32)
    sums = np.add.reduceat(values * factors[positions], tokens.cu_seqlens[:-1])
    sums += lengths.astype(np.uint64) * factors[-1]
    return sums if tokens.attended is None else sums + tokens.attended.astype(np.uint64) * factors[-2]


def _are_equal(tokens: Tokens, left: Index, right: Index) -> bool:
    """Whether each window of `left` equals the window at the same place of `right`."""
    if not np.array_equal(tokens.lengths[left], tokens.lengths[right]):
        return False
    if tokens.attended is not None and not np.array_equal(tokens.attended[left], tokens.attended[right]):
        return False
    left_tokens, right_tokens = token_index(tokens.cu_seqlens, left), token_index(tokens.cu_seqlens, right)
    types = tokens.token_type_ids
    same_types = types is None or np.array_equal(types[left_tokens], types[right_tokens])
    return same_types and np.array_equal(tokens.input_ids[left_tokens], tokens.input_ids[right_tokens])
