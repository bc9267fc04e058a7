"""The part of a head that needs whole rows: steps after pooling, sparse vectors from tokens, masks of kept tokens.

Knows nothing of packs and passes. Invariant: steps after pooling see the vector of a row (or of a window or chunk, if a
row holds several), not those of the windows that are combined to one row.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from varve.encoder.checkpoint.checkpoint import Checkpoint
from varve.encoder.checkpoint.head import Head, LexicalWeights, Splade, TokenMask, TokenWeights
from varve.encoder.checkpoint.pretrained_tokenizer import load_tokenizer
from varve.encoder.feature_plan import FeaturePlan
from varve.encoder.model.steps import Steps
from varve.encoder.packing import Index
from varve.encoder.results import HostVectors
from varve.encoder.sparse_vectors import SparseVectors, reduce_entries
from varve.preprocessing.tokens import SPECIAL, Tokens

Floats = NDArray[np.float32]


class RowHeads:
    """The heads of a feature plan, with the weights and token ids that rows need."""

    def __init__(self, feature_plan: FeaturePlan, checkpoint: Checkpoint, device: torch.device) -> None:
        """Load them.

        Args:
            feature_plan: the features.
            checkpoint: of the heads.
            device: on which steps run.

        Raises:
            JobError: a file of a head cannot be read.
        """
        self._heads, self._device = feature_plan.heads, device
        self._steps = {
            name: Steps(head.row_steps, checkpoint.root, device) for name, head in self._heads.items() if head.row_steps
        }
        self._weights = {
            name: load_file(Path(checkpoint.root, head.pooling.file))["weight"].astype(np.float32)
            for name, head in self._heads.items()
            if isinstance(head.pooling, TokenWeights)
        }
        self._skipped = _find_skipped(self._heads, checkpoint)

    @torch.inference_mode()
    def apply_steps(self, column: str, vectors: Floats) -> Floats:
        """(N, D) pooled vectors → (N, D') vectors after the steps of a column."""
        steps = self._steps.get(column)
        return vectors if steps is None else steps(torch.from_numpy(vectors).to(self._device)).numpy(force=True)

    def sparse(self, column: str, tokens: Tokens, vectors: HostVectors) -> SparseVectors:
        """The R sparse vectors of a column."""
        head = self._heads[column]
        match head.pooling:
            case Splade(strategy=strategy):
                found = vectors.sparse[column].combine(tokens.cu_windows, by_sum=strategy == "sum")
            case LexicalWeights():
                found = self._lexical(tokens, vectors.tokens[column][:, 0], self._skipped[column])
            case _:
                found = self._fixed(tokens, self._weights[column])
        return found if head.max_active_dims is None else found.keep_largest(head.max_active_dims)

    def kept_tokens(self, column: str, tokens: Tokens) -> NDArray[np.bool_]:
        """(T,) whether a late-interaction column keeps a token."""
        mask: TokenMask = self._heads[column].mask
        kept = np.ones(len(tokens.input_ids), np.bool_)
        if len(skipped := self._skipped[column]):
            kept &= ~np.isin(tokens.input_ids, skipped)
        if mask.kept_ids:
            kept &= np.isin(tokens.input_ids, mask.kept_ids)
        if mask.skips_first:
            kept[tokens.cu_seqlens[:-1]] = False
        return kept

    def _lexical(self, tokens: Tokens, weights: Floats, skipped: Index) -> SparseVectors:
        kept = ~np.isin(tokens.input_ids, skipped)
        return reduce_entries(_rows(tokens)[kept], tokens.input_ids[kept], weights[kept], len(tokens.truncated))

    def _fixed(self, tokens: Tokens, weights: Floats) -> SparseVectors:
        assert tokens.sequence_ids is not None
        ids, rows = tokens.input_ids, _rows(tokens)
        kept = (tokens.sequence_ids != SPECIAL) & (ids < len(weights))
        return reduce_entries(rows[kept], ids[kept], weights[ids[kept]], len(tokens.truncated))


def _rows(tokens: Tokens) -> Index:
    """(T,) the row of each token."""
    return np.repeat(np.arange(len(tokens.truncated)), tokens.num_tokens)


def _find_skipped(heads: Mapping[str, Head], checkpoint: Checkpoint) -> dict[str, Index]:
    """Column → ids of the tokens that a late-interaction or lexical head leaves out."""
    concerned = {
        name: head for name, head in heads.items() if head.kind == "late" or isinstance(head.pooling, LexicalWeights)
    }
    if not concerned:
        return {}
    tokenizer = load_tokenizer(checkpoint)
    special = [tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id]
    lexical = np.array([token for token in special if token is not None], np.int64)
    return {name: _ids_of(head.mask, tokenizer) if head.kind == "late" else lexical for name, head in concerned.items()}


def _ids_of(mask: TokenMask, tokenizer: Any) -> Index:
    """Ids of the skipped words that the vocabulary has; other words would stand for the unknown token."""
    ids = {word: tokenizer.convert_tokens_to_ids(word) for word in mask.skipped_words}
    known = [id_ for word, id_ in ids.items() if id_ != tokenizer.unk_token_id or word == tokenizer.unk_token]
    return np.array([id_ for id_ in known if id_ is not None], np.int64)
