"""Computes the expected features of a row with plain transformers.

Shares no code with the encoder: texts are tokenized by the checkpoint's own tokenizer and run one at a time through
the eager float32 model. Knows nothing of parts or stores.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from varve.config.model import Windows
from varve.encoder.feature_plan import Column
from varve.planning.plan import Plan


@dataclass(frozen=True, slots=True)
class _Window:
    """Pooled output of one window.

    Attributes:
        num_tokens: T, with special tokens.
        pooled: (pool, layer) → one vector (1, H); for tokens (T, H); for attentions (1, heads x T x T).
    """

    num_tokens: int
    pooled: dict[tuple[str, int], NDArray[np.float32]]


class Reference:
    """The checkpoint of a plan, run with eager attention in float32, one text at a time."""

    def __init__(self, plan: Plan) -> None:
        """Load all layers of the checkpoint, independently of the encoder."""
        self._plan = plan
        checkpoint = plan.checkpoint
        remote = checkpoint.trust_remote_code
        # Windows always run from left to right, whatever side the checkpoint truncates.
        side = {"truncation_side": "right"} if isinstance(plan.job.model.long_text, Windows) else {}
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=remote, **side)
        auto = AutoModelForSequenceClassification if plan.feature_plan.wants("logits") else AutoModel
        self._model: PreTrainedModel = auto.from_pretrained(
            checkpoint.folder, attn_implementation="eager", dtype=torch.float32, trust_remote_code=remote
        ).eval()

    @torch.inference_mode()
    def vectors(self, texts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Return the expected features of one row.

        Args:
            texts: one text, or the two of a sentence pair.

        Returns:
            column → (N, width) float32 for N vectors in the row; attention weights as (1, N).
        """
        windows = [self._run(inputs, special) for inputs, special in self._tokenize(texts)]
        return {column.name: self._combine(column, windows) for column in self._plan.feature_plan.columns}

    def _tokenize(self, texts: Sequence[str]) -> Iterator[tuple[dict[str, torch.Tensor], NDArray[np.bool_]]]:
        """Yield (inputs of the model, (T,) whether a token is special) of each window."""
        windows = self._plan.job.model.long_text
        stride = windows.stride if isinstance(windows, Windows) else 0
        # As batches of one: outside a batch an empty second text is ignored and its special token is missing.
        encoded = self._tokenizer(
            *([text] for text in texts),
            truncation=True,
            max_length=self._plan.resolved.max_tokens,
            stride=stride,
            return_overflowing_tokens=isinstance(windows, Windows),
            return_special_tokens_mask=True,
        )
        names = [name for name in self._tokenizer.model_input_names if name in encoded]
        for window, special in enumerate(encoded["special_tokens_mask"]):
            inputs = {name: torch.tensor(encoded[name][window])[None] for name in names}
            yield inputs, np.array(special, np.bool_)

    def _run(self, inputs: dict[str, torch.Tensor], special: NDArray[np.bool_]) -> _Window:
        """Run one window and keep only what the columns need: a book has thousands of windows."""
        features = self._plan.feature_plan
        attentions = features.wants("attentions")
        output = dict(self._model(**inputs, output_hidden_states=True, output_attentions=attentions))
        if features.wants("logits") and features.wants("pooler"):
            output["pooler_output"] = self._model.base_model(**inputs).pooler_output
        kept = torch.from_numpy(~special | features.special_tokens)
        needed = {(column.pool, layer) for column in features.columns for layer in column.layers}
        return _Window(len(special), {(pool, layer): _pool(pool, output, layer, kept) for pool, layer in needed})

    def _combine(self, column: Column, windows: Sequence[_Window]) -> NDArray[np.float32]:
        layers = [_over_windows(column, layer, windows) for layer in column.layers]
        match column.combine:
            case "concat":
                vectors = np.concatenate(layers, axis=1)
            case "sum":
                vectors = np.sum(layers, axis=0)
            case "mean":
                vectors = np.mean(layers, axis=0)
            case _:
                vectors = layers[0]
        if column.form == "attentions":
            return vectors
        vectors = vectors[:, : column.width]
        if column.normalize:
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


def _over_windows(column: Column, layer: int, windows: Sequence[_Window]) -> NDArray[np.float32]:
    """Concatenate the windows of a row; combine them if the row holds one vector."""
    vectors = np.concatenate([window.pooled[column.pool, layer] for window in windows])
    if column.form != "vector":
        return vectors
    if column.pool == "max":
        return vectors.max(axis=0, keepdims=True)
    weights = [window.num_tokens for window in windows]
    return np.average(vectors.astype(np.float64), axis=0, weights=weights)[None].astype(np.float32)


def _pool(pool: str, output: Mapping[str, Any], layer: int, kept: torch.Tensor) -> NDArray[np.float32]:
    """Pool the output of transformers for one window; kept: (T,) whether token columns contain a token."""
    state_TH = output["hidden_states"][layer][0]
    match pool:
        case "attentions":
            pooled = output["attentions"][layer - 1].reshape(1, -1)
        case "pooler":
            pooled = output["pooler_output"]
        case "logits":
            pooled = output["logits"]
        case "tokens":
            pooled = state_TH[kept]
        case "cls":
            pooled = state_TH[:1].clone()
        case "last":
            pooled = state_TH[-1:].clone()
        case "mean":
            pooled = state_TH.mean(0, keepdim=True)
        case _:
            pooled = state_TH.max(0, keepdim=True).values
    return pooled.numpy()
