"""Texts that are being encoded, and what they give.

Knows nothing of packs and lanes, which fill the results. Invariant: every text has its columns or a reason why not.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from varve.encoder.feature_plan import FeaturePlan
from varve.encoder.packing import Index
from varve.encoder.ragged import Columns
from varve.encoder.results import Counts, Kept, Results, make_columns
from varve.preprocessing.tokenizer import Tokens


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a call gives."""

    columns: Columns
    counts: Counts
    reasons: dict[int, str]  # text → why it could not be encoded; its features are NaN


class PendingCall:
    """Texts that are being encoded."""

    def __init__(
        self, plan: FeaturePlan, run_heads: Callable[[Kept], None], tokens: Tokens, kind: Index, results: Results
    ) -> None:
        """Made by `Encoder.start`."""
        self._plan, self._run_heads = plan, run_heads
        self._tokens, self._kind, self._results = tokens, kind, results

    def result(self) -> Encoded:
        """Wait for the packs; all feature columns of the texts, in their order."""
        self._results.wait()
        kept = self._results.kept
        self._run_heads(kept)
        self._results.refuse_infinite()
        columns = make_columns(self._plan, self._tokens, kept.spread(self._kind))
        return Encoded(columns, self._results.counts, self._reasons())

    def _reasons(self) -> dict[int, str]:
        """text → reason, from those of the windows that were encoded."""
        failed = self._results.reasons
        windows = np.flatnonzero(np.isin(self._kind, list(failed))) if failed else ()
        rows = np.searchsorted(self._tokens.cu_windows, windows, side="right") - 1
        return {int(row): failed[int(self._kind[window])] for row, window in zip(rows, windows, strict=True)}
