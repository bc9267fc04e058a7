"""Computes the expected features of a row with plain transformers.

Shares no code with the encoder: texts are tokenized by the checkpoint's own tokenizer (`reference_texts.py`), run one
at a time through the eager float32 model, and through the heads that the checkpoint declares (`reference_heads.py`).
Knows nothing of parts or stores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, PreTrainedModel

from varve.config.model import Windows
from varve.encoder.checkpoint.head import Pooling, Splade
from varve.encoder.feature_plan import Column
from varve.planning.plan import Plan
from varve.verification.reference_heads import ReferenceHead, pool_clusters
from varve.verification.reference_texts import ReferenceTexts, Window, cut_chunks

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Pooled:
    """Pooled output of one window.

    Attributes:
        num_tokens: T, with special tokens.
        pooled: (pool, layer) → (1, H), of chunks (C, H); for tokens (T, H); for attentions (1, heads x T x T).
        heads: column → what its head gives for the window, see `ReferenceHead.run`.
    """

    num_tokens: int
    pooled: dict[tuple[str, int], Floats]
    heads: dict[str, Floats]


class Reference:
    """The checkpoint of a plan, run with eager attention in float32, one text at a time."""

    def __init__(self, plan: Plan) -> None:
        """Load the tokenizer and the heads of the checkpoint, independently of the encoder."""
        self._plan = plan
        windows = plan.job.model.long_text
        self._chunks = windows.chunk if isinstance(windows, Windows) else None
        self._texts = ReferenceTexts(plan)
        heads, root = plan.feature_plan.heads, plan.checkpoint.root
        self._heads = {name: ReferenceHead(head, root, self._texts.tokenizer) for name, head in heads.items()}

    @cached_property
    def _model(self) -> PreTrainedModel:
        """All layers of the checkpoint, with the head that columns need."""
        features = self._plan.feature_plan
        if features.masked_lm_heads:
            return self._load(AutoModelForMaskedLM)
        return self._load(AutoModelForSequenceClassification if features.wants("logits") else AutoModel)

    @cached_property
    def _model_with_pooler(self) -> Any:
        """A masked-LM model has no pooler."""
        return self._load(AutoModel) if self._plan.feature_plan.masked_lm_heads else self._model.base_model

    def _load(self, auto: Any) -> PreTrainedModel:
        checkpoint = self._plan.checkpoint
        return auto.from_pretrained(
            checkpoint.folder,
            attn_implementation="eager",
            dtype=torch.float32,
            trust_remote_code=checkpoint.trust_remote_code,
        ).eval()

    @torch.inference_mode()
    def vectors(self, texts: Sequence[str]) -> dict[str, Floats]:
        """Return the expected features of one row.

        Args:
            texts: one text, or the two of a sentence pair.

        Returns:
            column → (N, width) float32 for N vectors in the row; attention weights as (1, N). A sparse vector is (1,
            width) with all its weights, whatever `max_active_dims` is.
        """
        windows = [self._run(window, texts[0]) for window in self._texts.windows(texts)]
        return {column.name: self._combine(column, windows) for column in self._plan.feature_plan.columns}

    def _run(self, window: Window, text: str) -> _Pooled:
        """Run one window and keep only what the columns need: a book has thousands of windows."""
        features = self._plan.feature_plan
        chunks = cut_chunks(window, self._chunks, text) if self._chunks else None
        output: dict[str, Any] = {}
        if features.needs_model:
            attentions = features.wants("attentions")
            output = dict(self._model(**window.inputs, output_hidden_states=True, output_attentions=attentions))
            if features.wants("pooler") and "pooler_output" not in output:
                output["pooler_output"] = self._model_with_pooler(**window.inputs).pooler_output
        kept = torch.from_numpy(window.is_text | features.special_tokens)
        needed = {
            (column.pool, layer)
            for column in features.columns
            if column.name not in self._heads
            for layer in column.layers
        }
        units = chunks or [slice(0, len(window.ids))]
        pooled = {(pool, layer): _pool(pool, output, layer, kept, units) for pool, layer in needed}
        return _Pooled(len(window.ids), pooled, self._run_heads(window, output, chunks))

    def _run_heads(
        self, window: Window, output: Mapping[str, Any], chunks: Sequence[slice] | None
    ) -> dict[str, Floats]:
        hidden = output["hidden_states"][-1][0] if output else None
        logits = output["logits"][0] if self._plan.feature_plan.masked_lm_heads else None
        return {name: head.run(window, hidden, logits, chunks) for name, head in self._heads.items()}

    def _combine(self, column: Column, windows: Sequence[_Pooled]) -> Floats:
        if column.name in self._heads:
            vectors = self._combine_head(column, self._heads[column.name], windows)
        else:
            vectors = _combine_layers(column, windows)
        if column.form in {"attentions", "sparse"}:
            return vectors
        vectors = vectors[:, : column.width]
        if column.normalize:
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        pooling = self._heads[column.name].head.token_pooling if column.form == "clusters" else None
        if pooling is None:
            return vectors
        if column.dtype == "binary":  # signs are all that the writing stage has
            vectors = np.where(vectors > 0, 1, -1).astype(np.float32) / np.float32(column.width**0.5)
        return pool_clusters(vectors, pooling)

    def _combine_head(self, column: Column, head: ReferenceHead, windows: Sequence[_Pooled]) -> Floats:
        found = np.concatenate([window.heads[column.name] for window in windows])
        pooling = head.head.pooling
        if column.form == "sparse":
            is_sum = isinstance(pooling, Splade) and pooling.strategy == "sum"
            return found.sum(axis=0, keepdims=True) if is_sum else found.max(axis=0, keepdims=True)
        if isinstance(pooling, Pooling):
            if column.form == "vector":
                found = _over_windows(found, pooling.modes, [window.num_tokens for window in windows])
            return head.finish_rows(found)
        return found


def _combine_layers(column: Column, windows: Sequence[_Pooled]) -> Floats:
    layers = [np.concatenate([window.pooled[column.pool, layer] for window in windows]) for layer in column.layers]
    if column.form == "vector":
        weights = [window.num_tokens for window in windows]
        layers = [_over_windows(layer, (column.pool,), weights) for layer in layers]
    match column.combine:
        case "concat":
            return np.concatenate(layers, axis=1)
        case "sum":
            return np.sum(layers, axis=0)
        case "mean":
            return np.mean(layers, axis=0)
        case _:
            return layers[0]


def _over_windows(vectors: Floats, pools: Sequence[str], weights: Sequence[int]) -> Floats:
    """Combine the vectors of the windows of a row; those of several poolings are concatenated."""
    combined = []
    for pool, block in zip(pools, np.split(vectors, len(pools), axis=1), strict=True):
        if pool == "max":
            combined.append(block.max(axis=0, keepdims=True))
        else:
            combined.append(np.average(block.astype(np.float64), axis=0, weights=weights)[None].astype(np.float32))
    return np.concatenate(combined, axis=1)


def _pool(pool: str, output: Mapping[str, Any], layer: int, kept: torch.Tensor, units: Sequence[slice]) -> Floats:
    """Pool the output of transformers for one window.

    Args:
        pool: of the feature.
        output: of transformers.
        layer: of the feature.
        kept: (T,) whether token columns contain a token.
        units: tokens over which vectors are pooled: all, or those of each chunk.
    """
    match pool:
        case "attentions":
            return output["attentions"][layer - 1].reshape(1, -1).numpy()
        case "pooler":
            return output["pooler_output"].numpy()
        case "logits":
            return output["logits"].numpy()
    state_TH = output["hidden_states"][layer][0]
    match pool:
        case "tokens":
            pooled = state_TH[kept]
        case "cls":
            pooled = state_TH[:1].clone()
        case "last":
            pooled = state_TH[-1:].clone()
        case "mean":
            pooled = torch.stack([state_TH[unit].mean(0) for unit in units])
        case _:
            pooled = torch.stack([state_TH[unit].amax(0) for unit in units])
    return pooled.numpy()
