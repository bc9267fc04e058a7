"""Fills short queries with tokens whose vectors are kept, as late-interaction models were trained. Pure numpy.

Source: Khattab & Zaharia 2020, ColBERT, section 3.2 (query augmentation).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varve.preprocessing.tokens import EXPANSION, Tokens, range_index, starts_of


@dataclass(frozen=True, slots=True)
class QueryExpansion:
    """Windows with fewer than `length` tokens are filled up with `token_id`."""

    length: int
    token_id: int
    attend: bool  # the other tokens attend to the added ones


def expand(tokens: Tokens, expansion: QueryExpansion) -> Tokens:
    """Fill the short windows.

    An added token has type 0, span [0, 0) and sequence id `EXPANSION`.
    """
    lengths = tokens.lengths
    filled = np.maximum(lengths, expansion.length)
    cu_seqlens = starts_of(filled)
    places = range_index(cu_seqlens[:-1], lengths)
    total = int(cu_seqlens[-1])
    types, spans, sequence_ids = tokens.token_type_ids, tokens.spans, tokens.sequence_ids
    is_longer = not np.array_equal(filled, lengths)
    return replace(
        tokens,
        input_ids=_spread(tokens.input_ids, places, total, expansion.token_id),
        cu_seqlens=cu_seqlens,
        token_type_ids=None if types is None else _spread(types, places, total, 0),
        spans=None if spans is None else _spread(spans, places, total, 0),
        sequence_ids=None if sequence_ids is None else _spread(sequence_ids, places, total, EXPANSION),
        attended=lengths if is_longer and not expansion.attend else None,
    )


def _spread(values: NDArray[Any], places: NDArray[np.int64], total: int, fill: int) -> NDArray[Any]:
    """(T, ...) values at their places in an array of `total`, and `fill` between them."""
    spread = np.full((total, *values.shape[1:]), fill, values.dtype)
    spread[places] = values
    return spread
