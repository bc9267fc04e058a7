"""A faster implementation of a checkpoint's tokenizer, chosen by the kind of its model.

Knows nothing of windows. Invariant: an implementation that is returned gave the ids of `tokenizers` for every text of
`token_check`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from varve.preprocessing.token_check import find_difference
from varve.preprocessing.word_cache import WordCache, can_cache

try:
    import nanotoken
except ImportError:  # no wheel for this platform
    nanotoken = None

Side = Literal["left", "right"]
Flat = tuple[NDArray[np.int32], NDArray[np.int64]]


class FastTokenizer(Protocol):
    """Texts → flat ids."""

    name: str  # with its version

    def encode(self, texts: Sequence[str], max_tokens: int | None = None, side: Side = "right") -> Flat:
        """The ids of texts, with special tokens.

        Args:
            texts: to encode.
            max_tokens: a text of more tokens, with special tokens, is truncated to this number.
            side: of the text that is dropped.

        Returns:
            (T,) ids of all texts, and (R + 1,) where each text starts.
        """
        ...


class NanotokenWordPiece:
    """WordPiece of the package `nanotoken`.

    It runs on the calling thread, without the GIL: a pool of threads would not survive a fork, and one core is faster
    than any encoder. Each thread that calls at the same time has caches of at most 130 MiB.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Wrap a `nanotoken.Tokenizer`."""
        self.name = f"nanotoken {version('nanotoken')}"
        self._encode_batch = tokenizer.encode_batch

    def encode(self, texts: Sequence[str], max_tokens: int | None = None, side: Side = "right") -> Flat:
        """See `FastTokenizer`."""
        rows = self._encode_batch(texts, max_length=max_tokens, truncation_side=side, parallel=False)
        return rows.ids.view(np.int32), rows.offsets


def find_fast_tokenizer(raw: Any) -> FastTokenizer | str:
    """The fast implementation of a tokenizer, or the reason why it has none.

    Args:
        raw: a tokenizer of `tokenizers`, without truncation and padding.
    """
    return _find(_Tokenizer(raw.to_str(), raw))


@dataclass(frozen=True, slots=True)
class _Tokenizer:
    """A tokenizer of `tokenizers`, equal to others with the same state."""

    state: str  # JSON
    raw: Any = field(compare=False)


@lru_cache(maxsize=2)  # reading and comparing take a tenth of a second; the caches of words are shared
def _find(tokenizer: _Tokenizer) -> FastTokenizer | str:
    fast = _read(tokenizer)
    return fast if isinstance(fast, str) else find_difference(fast, tokenizer.raw) or fast


def _read(tokenizer: _Tokenizer) -> FastTokenizer | str:
    reason = "its words depend on their neighbours"
    if json.loads(tokenizer.state)["model"].get("type") == "WordPiece" and nanotoken is not None:
        try:
            return NanotokenWordPiece(nanotoken.Tokenizer.from_json(tokenizer.state))
        except ValueError as e:
            reason = f"nanotoken does not support it: {e}"
    own = type(tokenizer.raw).from_str(tokenizer.state)  # the given one truncates later
    return WordCache(own) if can_cache(own) else reason
