"""The heads of a checkpoint for the reference: one step after another in plain torch, as the declaration says.

Shares no code with the heads of the encoder. Every function computes one text or one window.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from varve.encoder.checkpoint.head import (
    Dense,
    Head,
    LayerNorm,
    LexicalWeights,
    Splade,
    Step,
    TokenPooling,
    TokenWeights,
)
from varve.verification.reference_texts import Window

Floats = NDArray[np.float32]
_TOKENS_AT_ONCE = 256  # of the weights of the vocabulary, which are large


class ReferenceHead:
    """One head, with its weights."""

    def __init__(self, head: Head, root: str, tokenizer: Any) -> None:
        """Load the weights; `root` is the folder of the checkpoint."""
        self.head, self._tokenizer = head, tokenizer
        files = {step.file for step in (*head.token_steps, *head.row_steps) if isinstance(step, (Dense, LayerNorm))}
        files |= {head.pooling.file} if isinstance(head.pooling, TokenWeights) else set()
        self._weights = {file: load_file(Path(root, file)) for file in files}

    def run(
        self, window: Window, hidden_TH: Tensor | None, logits_TV: Tensor | None, chunks: Sequence[slice] | None
    ) -> Floats:
        """What the head gives for one window.

        Args:
            window: its tokens.
            hidden_TH: token vectors of the last layer; None if the model is not run.
            logits_TV: output of the masked-LM head, if the head needs it.
            chunks: the tokens of each chunk; None: dense vectors are pooled over all tokens.

        Returns:
            Dense: one vector, or one per chunk, before the steps on rows. Sparse: (1, V). Late: one vector per kept
            token.
        """
        pooling = self.head.pooling
        if isinstance(pooling, TokenWeights):
            return self._fixed_weights(window, pooling).numpy()
        if isinstance(pooling, Splade):
            assert logits_TV is not None
            return _splade(pooling, logits_TV).numpy()
        assert hidden_TH is not None
        vectors = self._apply(self.head.token_steps, hidden_TH)
        if isinstance(pooling, LexicalWeights):
            return self._lexical_weights(window, pooling, vectors[:, 0]).numpy()
        if pooling is None:
            return vectors[torch.from_numpy(self._is_kept(window))].numpy()
        first = 0 if pooling.include_prompt else min(window.prompt_tokens, len(vectors) - 1)
        units = [slice(first, len(vectors))] if chunks is None else chunks
        rows = [torch.cat([_pool(mode, vectors[unit], unit.start) for mode in pooling.modes]) for unit in units]
        return torch.stack(rows).numpy()

    def finish_rows(self, vectors: Floats) -> Floats:
        """The steps after the pooling."""
        return self._apply(self.head.row_steps, torch.from_numpy(vectors)).numpy()

    def _apply(self, steps: Sequence[Step], vectors: Tensor) -> Tensor:
        for step in steps:
            if isinstance(step, Dense):
                vectors = _dense(step, self._weights[step.file], vectors)
            elif isinstance(step, LayerNorm):
                weights = self._weights[step.file]
                centred = vectors - vectors.mean(-1, keepdim=True)
                scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
                vectors = scaled * weights["norm.weight"].float() + weights["norm.bias"].float()
            else:
                vectors = vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        return vectors

    def _fixed_weights(self, window: Window, pooling: TokenWeights) -> Tensor:
        weights, result = self._weights[pooling.file]["weight"].float(), torch.zeros(1, pooling.vocab_size)
        for token in set(window.ids[~window.is_template].tolist()):
            if token < len(weights):
                result[0, token] = weights[token]
        return result

    def _lexical_weights(self, window: Window, pooling: LexicalWeights, weights: Tensor) -> Tensor:
        own, result = self._tokenizer, torch.zeros(1, pooling.vocab_size)
        without = {own.cls_token_id, own.eos_token_id, own.pad_token_id, own.unk_token_id}
        for token, weight in zip(window.ids.tolist(), weights.tolist(), strict=True):
            if token not in without:
                result[0, token] = max(weight, float(result[0, token]))
        return result

    def _is_kept(self, window: Window) -> NDArray[np.bool_]:
        """(T,) the tokens that a late-interaction model keeps."""
        mask, own = self.head.mask, self._tokenizer
        skipped = {own.convert_tokens_to_ids(word) for word in mask.skipped_words if word != own.unk_token}
        skipped -= {own.unk_token_id}
        skipped |= {own.unk_token_id} if own.unk_token in mask.skipped_words else set()
        kept = [token not in skipped and token in (mask.kept_ids or [token]) for token in window.ids.tolist()]
        return np.array(kept, np.bool_) & (np.arange(len(kept)) >= mask.skips_first)


def _dense(step: Dense, weights: dict[str, Tensor], vectors: Tensor) -> Tensor:
    result = vectors @ weights[f"{step.prefix}weight"].float().T
    if f"{step.prefix}bias" in weights:
        result = result + weights[f"{step.prefix}bias"].float()
    match step.activation:
        case "identity":
            pass
        case "gelu":
            result = torch.nn.functional.gelu(result)
        case "silu":
            result = result * result.sigmoid()
        case _:
            result = getattr(torch, step.activation)(result)
    if not step.residual:
        return result
    own = weights.get("residual.weight")
    return result + (vectors if own is None else vectors @ own.float().T)


def _pool(mode: str, vectors_TH: Tensor, first: int) -> Tensor:
    """One vector from the vectors of the tokens from position `first`."""
    match mode:
        case "cls":
            return vectors_TH[0]
        case "lasttoken":
            return vectors_TH[-1]
        case "max":
            return vectors_TH.amax(0)
        case "mean":
            return vectors_TH.mean(0)
        case "mean_sqrt_len_tokens":
            return vectors_TH.sum(0) / len(vectors_TH) ** 0.5
        case _:
            weights = torch.arange(first + 1, first + 1 + len(vectors_TH)).float()[:, None]
            return (vectors_TH * weights).sum(0) / weights.sum()


def _splade(pooling: Splade, logits_TV: Tensor) -> Tensor:
    """(1, V) weights of the vocabulary."""
    parts = []
    for logits in logits_TV.split(_TOKENS_AT_ONCE):
        weights = logits.float().relu().log1p()
        weights = weights.log1p() if pooling.twice else weights
        parts.append(weights.amax(0) if pooling.strategy == "max" else weights.sum(0))
    parts = torch.stack(parts)
    return parts.amax(0, keepdim=True) if pooling.strategy == "max" else parts.sum(0, keepdim=True)


def pool_clusters(vectors: Floats, pooling: TokenPooling) -> Floats:
    """The protected tokens and the means of the clusters of one text."""
    from scipy.cluster.hierarchy import fcluster, ward  # noqa: PLC0415 (an extra)
    from scipy.spatial.distance import squareform  # noqa: PLC0415 (an extra)

    protected, others = vectors[: pooling.protected], vectors[pooling.protected :]
    count = max(int(len(others) // pooling.factor), 1)
    if pooling.factor > 1 and count < len(others):
        distances = np.maximum(1 - others @ others.T, 0)
        np.fill_diagonal(distances, 0)
        labels = fcluster(ward(squareform(distances, checks=False)), count, "maxclust")
        others = np.stack([others[labels == label].mean(axis=0) for label in np.unique(labels)])
    pooled = np.concatenate([protected, others])
    lengths = np.linalg.norm(pooled, axis=1, keepdims=True)
    return pooled / np.maximum(lengths, 1e-12) if pooling.normalize else pooled
