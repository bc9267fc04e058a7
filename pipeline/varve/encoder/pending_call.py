"""A call whose packs are queued or running, and its result.

Knows nothing of packs and lanes, which fill the results. Invariant: every text has its features or a reason why not.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from varve.encoder.columns import make_columns
from varve.encoder.feature_plan import FeaturePlan
from varve.encoder.packing import Index
from varve.encoder.ragged import Columns
from varve.encoder.results import Counts, HostVectors, Results
from varve.encoder.row_heads import RowHeads
from varve.preprocessing.tokens import Tokens


@dataclass(frozen=True, slots=True)
class Encoded:
    """The result of a call."""

    columns: Columns
    counts: Counts
    reasons: dict[int, str]  # text → why it could not be encoded; its features are NaN


class PendingCall:
    """A call to `Encoder.start` whose result can be waited for."""

    def __init__(
        self,
        feature_plan: FeaturePlan,
        add_head_outputs: Callable[[HostVectors], None],
        tokens: Tokens,
        inverse: Index,
        results: Results,
        heads: RowHeads,
    ) -> None:
        """Made by `Encoder.start`, which finds the `inverse`: for each window its distinct one in `results`."""
        self._feature_plan, self._add_head_outputs = feature_plan, add_head_outputs
        self._tokens, self._inverse, self._results, self._heads = tokens, inverse, results, heads

    def result(self, *, pools_tokens: bool = False) -> Encoded:
        """Wait for the packs and make all feature columns of the texts, in their order.

        Args:
            pools_tokens: apply the token pooling of late-interaction columns, which otherwise hold every token.
        """
        self._results.wait()
        vectors = self._results.vectors
        self._add_head_outputs(vectors)
        self._results.fail_non_finite()
        gathered = vectors.gather(self._inverse)
        columns = make_columns(self._feature_plan, self._tokens, gathered, self._heads, pools_tokens=pools_tokens)
        return Encoded(columns, self._results.counts, self._reasons())

    def _reasons(self) -> dict[int, str]:
        """text → reason, from the reasons of the distinct windows."""
        failed = self._results.reasons
        windows = np.flatnonzero(np.isin(self._inverse, list(failed))) if failed else ()
        texts = np.searchsorted(self._tokens.cu_windows, windows, side="right") - 1
        return {int(text): failed[int(self._inverse[window])] for text, window in zip(texts, windows, strict=True)}
