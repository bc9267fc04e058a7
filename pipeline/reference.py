"""A checkpoint as plain transformers runs it: what a row's vectors should be.

Independent on purpose: it shares no code with the encoder. Texts are tokenized by the checkpoint's own tokenizer call
and run one at a time through the eager fp32 model, every hidden state kept. Knows nothing of parts or stores.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from pipeline.columns import Column
from pipeline.encoder.checkpoint import Checkpoint
from pipeline.plan import Plan
from pipeline.spec.model import Windows


@dataclass(frozen=True, slots=True)
class Hidden:
    """What plain transformers gives for one window."""

    states: list[NDArray[np.float32]]  # n + 1 arrays (T, H)
    attentions: list[NDArray[np.float32]]  # n arrays (heads, T, T); empty unless asked for
    pooler: NDArray[np.float32] | None  # (H,)
    logits: NDArray[np.float32] | None  # (labels,)


class Reference:
    """A checkpoint run as its authors would: eager attention, float32, one text at a time."""

    def __init__(self, checkpoint: Checkpoint, plan: Plan) -> None:
        """Load the checkpoint a second time, whole."""
        remote = checkpoint.trust_remote_code
        self._plan = plan
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=remote)
        auto = AutoModelForSequenceClassification if plan.features.wants("logits") else AutoModel
        self._model: PreTrainedModel = auto.from_pretrained(
            checkpoint.folder, attn_implementation="eager", dtype=torch.float32, trust_remote_code=remote
        ).eval()

    @torch.inference_mode()
    def windows(self, texts: Sequence[str]) -> Iterator[tuple[Hidden, NDArray[np.bool_]]]:
        """(hidden states, which tokens are special) of each window of one row."""
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
            yield self._run(inputs), np.array(special, np.bool_)

    def _run(self, inputs: dict[str, torch.Tensor]) -> Hidden:
        wants = self._plan.features.wants
        output = self._model(**inputs, output_hidden_states=True, output_attentions=wants("attentions"))
        pooler = getattr(output, "pooler_output", None)
        if wants("logits") and wants("pooler"):
            pooler = self._model.base_model(**inputs).pooler_output
        return Hidden(
            states=[state[0].numpy() for state in output.hidden_states],
            attentions=[weights[0].numpy() for weights in output.attentions or ()],
            pooler=pooler[0].numpy() if pooler is not None else None,
            logits=output.logits[0].numpy() if wants("logits") else None,
        )

    def vectors(self, column: Column, windows: list[tuple[Hidden, NDArray[np.bool_]]]) -> NDArray[np.float32]:
        """What a column should hold for a row of these windows: (N, width) float32; attentions flat, (1, N)."""
        if column.form == "attentions":
            return windows[0][0].attentions[column.layers[0] - 1].reshape(1, -1)
        layers = [self._layer(column, layer, windows) for layer in column.layers]
        match column.combine:
            case "concat":
                vectors = np.concatenate(layers, axis=1)
            case "sum":
                vectors = np.sum(layers, axis=0)
            case "mean":
                vectors = np.mean(layers, axis=0)
            case _:
                vectors = layers[0]
        vectors = vectors[:, : column.width]
        if column.normalize:
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    def _layer(
        self, column: Column, layer: int, windows: list[tuple[Hidden, NDArray[np.bool_]]]
    ) -> NDArray[np.float32]:
        if column.form == "tokens":
            keep_special = self._plan.features.special_tokens
            return np.concatenate([hidden.states[layer][keep_special | ~special] for hidden, special in windows])
        pooled = np.stack([_pool(column.pool, hidden, layer) for hidden, _ in windows])
        if column.form == "windows":
            return pooled
        if column.pool == "max":
            return pooled.max(axis=0, keepdims=True)
        weights = [len(special) for _, special in windows]
        return np.average(pooled.astype(np.float64), axis=0, weights=weights)[None].astype(np.float32)


def _pool(pool: str, hidden: Hidden, layer: int) -> NDArray[np.float32]:
    state = hidden.states[layer]
    match pool:
        case "cls":
            return state[0]
        case "last":
            return state[-1]
        case "mean":
            return state.mean(axis=0)
        case "max":
            return state.max(axis=0)
        case "pooler":
            assert hidden.pooler is not None
            return hidden.pooler
        case _:
            assert hidden.logits is not None
            return hidden.logits
