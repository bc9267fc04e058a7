"""Builds the feature columns of a call's texts from the vectors of their windows.

Knows the feature plan and the call's tokens, but no models or devices. Invariant: a window that was encoded once for
several equal ones appears in the columns of each of them.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from varve.encoder.feature_plan import Column, FeaturePlan
from varve.encoder.model import pooling
from varve.encoder.packing import Index
from varve.encoder.postprocessing import finish
from varve.encoder.ragged import Columns, Ragged
from varve.encoder.results import HostVectors
from varve.encoder.row_heads import RowHeads
from varve.encoder.token_pooling import pool_rows
from varve.preprocessing.tokens import Tokens, starts_of

Floats = NDArray[np.float32]


def make_columns(
    feature_plan: FeaturePlan, tokens: Tokens, vectors: HostVectors, heads: RowHeads, *, pools_tokens: bool = False
) -> Columns:
    """Build the feature columns of the texts, in their order.

    Args:
        feature_plan: the features.
        tokens: of the texts.
        vectors: of their windows.
        heads: of the plan.
        pools_tokens: apply the token pooling of late-interaction columns, which otherwise hold every token.
    """
    return _ColumnMaker(feature_plan, tokens, vectors, heads, pools_tokens=pools_tokens).make()


class _ColumnMaker:
    """The feature columns of one call."""

    def __init__(
        self, feature_plan: FeaturePlan, tokens: Tokens, vectors: HostVectors, heads: RowHeads, *, pools_tokens: bool
    ) -> None:
        self._plan, self._tokens, self._vectors, self._heads = feature_plan, tokens, vectors, heads
        self._poolings = feature_plan.token_poolings if pools_tokens else {}
        self._shown = np.ones(len(tokens.input_ids), np.bool_)  # tokens that token columns hold
        if tokens.sequence_ids is not None and not feature_plan.special_tokens:
            self._shown = tokens.sequence_ids >= 0

    def make(self) -> Columns:
        columns: Columns = {}
        for column in self._plan.columns:
            columns |= self._make(column)
        tokens = self._tokens
        if self._plan.wants("tokens"):
            columns |= self._token_columns("", self._shown)
            columns["sequence_ids"] = self._of_tokens(tokens.sequence_ids, self._shown)
        spans = {"windows": _window_spans, "chunks": lambda tokens: tokens.chunk_spans}
        for name in self._plan.span_columns:
            columns[name] = Ragged(spans[name](tokens), self._unit_offsets)
        return columns

    def _make(self, column: Column) -> Columns:
        vectors, layers = self._vectors, column.layers
        match column.form:
            case "attentions":
                weights = vectors.attentions[layers[0]].astype(column.dtype, copy=False)
                return {column.name: Ragged(weights, vectors.cu_attentions[self._tokens.cu_windows])}
            case "tokens":
                found = [vectors.tokens[layer][self._shown] for layer in layers]
                return _finish(column, found, self._offsets_of(self._shown))
            case "sparse":
                found = self._heads.sparse(column.name, self._tokens, vectors)
                ids, weights = column.stored_names
                return {ids: Ragged(found.ids, found.offsets), weights: Ragged(found.weights, found.offsets)}
            case "late" | "clusters":
                return self._make_late(column)
            case _:
                return self._make_pooled(column)

    def _make_late(self, column: Column) -> Columns:
        kept = self._heads.kept_tokens(column.name, self._tokens)
        vectors = Ragged(self._vectors.tokens[column.name][kept], self._offsets_of(kept))
        if pooling := self._poolings.get(column.name):
            vectors = pool_rows(vectors, pooling)
        columns = _finish(column, [vectors.values], vectors.offsets)
        return columns | self._token_columns(f"{column.name}_", kept) if column.form == "late" else columns

    def _make_pooled(self, column: Column) -> Columns:
        pools = self._plan.pools(column) or (column.pool,)
        layers = [self._pool_rows(column, pools, layer) for layer in column.layers]
        layers = [self._heads.apply_steps(column.name, layer) for layer in layers]
        return _finish(column, layers, None if column.form == "vector" else self._unit_offsets)

    def _pool_rows(self, column: Column, pools: Sequence[str], layer: int) -> Floats:
        """The vectors of a layer: one per row, or one per window or chunk; those of several poolings concatenated."""
        tokens = self._tokens
        vectors = [self._vectors.pooled[pool, layer] for pool in pools]
        if column.form == "vector" and len(tokens.lengths) > len(tokens.truncated):
            vectors = [_pool_windows(each, tokens, pool) for each, pool in zip(vectors, pools, strict=True)]
        return vectors[0] if len(vectors) == 1 else np.concatenate(vectors, axis=1)

    def _token_columns(self, prefix: str, kept: NDArray[np.bool_]) -> Columns:
        """Ids and character spans of some tokens."""
        arrays = {"input_ids": self._tokens.input_ids, "offsets": self._tokens.spans}
        return {f"{prefix}{name}": self._of_tokens(array, kept) for name, array in arrays.items()}

    def _of_tokens(self, values: NDArray | None, kept: NDArray[np.bool_]) -> Ragged:
        assert values is not None  # the tokenizer gives spans if the plan needs them
        return Ragged(values[kept], self._offsets_of(kept))

    def _offsets_of(self, kept: NDArray[np.bool_]) -> Index:
        """(R + 1,) where the kept tokens of each row start."""
        return starts_of(kept)[self._tokens.cu_seqlens[self._tokens.cu_windows]]

    @property
    def _unit_offsets(self) -> Index:
        """(R + 1,) where the windows or chunks of each row start."""
        return self._vectors.cu_units[self._tokens.cu_windows]


def _finish(column: Column, layers: Sequence[Floats], offsets: Index | None) -> Columns:
    """The column's stored values and, for int8, its scales; ragged if offsets are given."""
    values, scales = finish(column, layers)
    arrays = {column.name: values}
    if scales is not None and column.scale_name:
        arrays[column.scale_name] = scales
    return {name: array if offsets is None else Ragged(array, offsets) for name, array in arrays.items()}


def _pool_windows(pooled: Floats, tokens: Tokens, pool: str) -> Floats:
    """(W, H) vectors of windows → (R, H) vectors of texts."""
    weights, cu_windows = torch.from_numpy(tokens.lengths), torch.from_numpy(tokens.cu_windows)
    return pooling.pool_rows(torch.from_numpy(pooled), weights, cu_windows, pool).numpy()


def _window_spans(tokens: Tokens) -> NDArray[np.int32]:
    """(W, 2) characters [start, stop) of each window in its text; an empty span without text tokens."""
    assert tokens.spans is not None
    assert tokens.sequence_ids is not None
    of_text = tokens.sequence_ids >= 0
    largest = np.iinfo(np.int32).max
    # Every window has tokens, so no segment of reduceat is empty.
    starts = np.minimum.reduceat(np.where(of_text, tokens.spans[:, 0], largest), tokens.cu_seqlens[:-1])
    stops = np.maximum.reduceat(np.where(of_text, tokens.spans[:, 1], 0), tokens.cu_seqlens[:-1])
    return np.stack([np.minimum(starts, stops), stops], axis=1).astype(np.int32)
