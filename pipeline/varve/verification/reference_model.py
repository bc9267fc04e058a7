"""A checkpoint as plain transformers runs it: what a row's vectors should be.

Independent on purpose: it shares no code with the encoder. Texts are tokenized by the checkpoint's own tokenizer call
and run one at a time through the eager fp32 model. Knows nothing of parts or stores.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from varve.config.model import Windows
from varve.encoder.checkpoint.inspection import Checkpoint
from varve.encoder.feature_plan import Column
from varve.planning.plan import Plan


@dataclass(frozen=True, slots=True)
class _Window:
    """What a row's columns take of one window: one vector (1, H), its tokens' (T, H), attentions (1, heads x T x T)."""

    num_tokens: int
    taken: dict[tuple[str, int], NDArray[np.float32]]  # (pool, layer) → that


class Reference:
    """A checkpoint run as its authors would: eager attention, float32, one text at a time."""

    def __init__(self, checkpoint: Checkpoint, plan: Plan) -> None:
        """Load the checkpoint a second time, whole."""
        remote = checkpoint.trust_remote_code
        self._plan = plan
        # Windows leave nothing out, so that their side is no matter of the checkpoint's.
        side = {"truncation_side": "right"} if isinstance(plan.job.model.long_text, Windows) else {}
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=remote, **side)
        auto = AutoModelForSequenceClassification if plan.features.wants("logits") else AutoModel
        self._model: PreTrainedModel = auto.from_pretrained(
            checkpoint.folder, attn_implementation="eager", dtype=torch.float32, trust_remote_code=remote
        ).eval()

    @torch.inference_mode()
    def vectors(self, texts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """What each column should hold for the row of these texts: (N, width) float32; attentions flat, (1, N)."""
        windows = [self._run(inputs, special) for inputs, special in self._tokenize(texts)]
        return {column.name: self._combine(column, windows) for column in self._plan.features.columns}

    def _tokenize(self, texts: Sequence[str]) -> Iterator[tuple[dict[str, torch.Tensor], NDArray[np.bool_]]]:
        """(the model's inputs, which tokens are special) of each window."""
        windows = self._plan.job.model.long_text
        stride = windows.stride if isinstance(windows, Windows) else 0
        # As a list of one: alone, an empty second text counts as none, and the pair would lose its last special token.
        encoded = self._tokenizer(
            *([text] for text in texts),
            truncation=True,
            max_length=self._plan.resolved.max_tokens,
            stride=stride,
            return_overflowing_tokens=isinstance(windows, Windows),
            return_special_tokens_mask=True,
        )
        for at, special in enumerate(encoded["special_tokens_mask"]):
            inputs = {n: torch.tensor(encoded[n][at])[None] for n in self._tokenizer.model_input_names if n in encoded}
            yield inputs, np.array(special, np.bool_)

    def _run(self, inputs: dict[str, torch.Tensor], special: NDArray[np.bool_]) -> _Window:
        """A window, of which no more is kept than is asked for: a book has thousands."""
        features = self._plan.features
        attentions = features.wants("attentions")
        output = dict(self._model(**inputs, output_hidden_states=True, output_attentions=attentions))
        if features.wants("logits") and features.wants("pooler"):
            output["pooler_output"] = self._model.base_model(**inputs).pooler_output
        kept = torch.from_numpy(~special | features.special_tokens)
        wanted = {(column.pool, layer) for column in features.columns for layer in column.layers}
        return _Window(len(special), {(pool, at): _take(pool, output, at, kept) for pool, at in wanted})

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
    taken = np.concatenate([window.taken[column.pool, layer] for window in windows])
    if column.form != "vector":
        return taken
    if column.pool == "max":
        return taken.max(axis=0, keepdims=True)
    weights = [window.num_tokens for window in windows]
    return np.average(taken.astype(np.float64), axis=0, weights=weights)[None].astype(np.float32)


def _take(pool: str, output: Mapping[str, Any], layer: int, kept: torch.Tensor) -> NDArray[np.float32]:
    """What a pooling takes of plain transformers' output for one window; kept: (T,) tokens that token columns hold."""
    state_TH = output["hidden_states"][layer][0]
    match pool:
        case "attentions":
            taken = output["attentions"][layer - 1].reshape(1, -1)
        case "pooler":
            taken = output["pooler_output"]
        case "logits":
            taken = output["logits"]
        case "tokens":
            taken = state_TH[kept]
        case "cls":
            taken = state_TH[:1].clone()
        case "last":
            taken = state_TH[-1:].clone()
        case "mean":
            taken = state_TH.mean(0, keepdim=True)
        case _:
            taken = state_TH.max(0, keepdim=True).values
    return taken.numpy()
