"""Texts that are being encoded, and what they give.

Knows nothing of packs and lanes, which fill the results. Invariant: every text has its columns or a reason why not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.encoder.packing import Index
from pipeline.encoder.ragged import Columns
from pipeline.encoder.results import Counts, Results, make_columns
from pipeline.errors import JobError
from pipeline.spec.model import NO_WINDOWS_OF_PAIRS
from pipeline.tokenizer import Tokens

if TYPE_CHECKING:
    from pipeline.encoder.encoder import Encoder


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a call gives."""

    columns: Columns
    counts: Counts
    reasons: dict[int, str]  # text → why it could not be encoded; its features are NaN


class Call:
    """Texts that are being encoded."""

    def __init__(self, encoder: "Encoder", tokens: Tokens, kind: Index, results: Results) -> None:
        """Made by `Encoder.start`."""
        self._encoder, self._tokens, self._kind, self._results = encoder, tokens, kind, results

    def result(self) -> Encoded:
        """Wait for the packs; all feature columns of the texts, in their order."""
        self._results.wait()
        kept = self._results.kept
        self._encoder.run_heads(kept)
        self._results.refuse_infinite()
        columns = make_columns(self._encoder.plan, self._tokens, kept.spread(self._kind))
        return Encoded(columns, self._results.counts, self._reasons())

    def _reasons(self) -> dict[int, str]:
        """text → reason, from those of the windows that were encoded."""
        failed = self._results.reasons
        windows = np.flatnonzero(np.isin(self._kind, list(failed))) if failed else ()
        rows = np.searchsorted(self._tokens.rows, windows, side="right") - 1
        return {int(row): failed[int(self._kind[window])] for row, window in zip(rows, windows, strict=True)}


def check_texts(texts: Sequence[str], pairs: Sequence[str] | None, *, windows: bool) -> None:
    """Refuse what Python takes for texts and is none: a single text is a sequence too, of its characters.

    Args:
        texts: as a caller gave them.
        pairs: likewise.
        windows: long texts are cut into several.

    Raises:
        JobError: one is no list of texts, there are not as many of both, or windows are to be cut of pairs.
    """
    for each in (texts,) if pairs is None else (texts, pairs):
        _check_list(each)
    if pairs is not None and windows:
        raise JobError(NO_WINDOWS_OF_PAIRS)
    if pairs is not None and len(texts) != len(pairs):
        msg = f"{len(texts)} first texts and {len(pairs)} second ones are no pairs"
        raise JobError(msg)


def _check_list(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        msg = f"a single text was given, where a list is expected: [{texts[:20]!r}]"
        raise JobError(msg)
    for at, text in enumerate(texts):
        if not isinstance(text, str):
            msg = f"text {at}: a {type(text).__name__} is no text. Leave it out"
            raise JobError(msg)
