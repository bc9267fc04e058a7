"""The embeddings of BERT's family on a CPU: one call of compiled code for lookups, sums and norm.

torch makes five passes over the token vectors, half of the time of features of layer 0. Knows nothing of packs.
Invariants: float32 only: other passes, and embeddings that are cast later, run the original code; parity_check.py
compares the changed model with the original.
"""

import inspect
from typing import Any
from weakref import WeakMethod

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from varve.encoder.kernels.cpu_library import CpuLibrary, EmbeddingWeights, Table
from varve.encoder.model.fused_linear import norm_of

# Submodules of BERT's embeddings. DistilBERT and MPNet have no types.
_WORDS, _TYPES, _POSITIONS = "word_embeddings", "token_type_embeddings", "position_embeddings"
_OTHERS = {"LayerNorm", "dropout"}
_WIDTH_MULTIPLE = 16  # compiled/embeddings.c
_IDS = ("input_ids", "token_type_ids", "position_ids")


def fuse_embeddings(model: PreTrainedModel, library: CpuLibrary) -> bool:
    """Replace the forward of embeddings written like BERT's; returns whether the model has such a module."""
    embeddings = getattr(model, "embeddings", None)
    if not isinstance(embeddings, nn.Module) or not _can_fuse(embeddings):
        return False
    embeddings.forward = FusedEmbeddings(embeddings, library)
    return True


class FusedEmbeddings:
    """The forward of a module of embeddings."""

    def __init__(self, embeddings: Any, library: CpuLibrary) -> None:
        """Take a module that `_can_fuse` accepts."""
        self._original, self._library = WeakMethod(embeddings.forward), library
        self._parameters = tuple(inspect.signature(embeddings.forward).parameters)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Ids and positions (1, T) or (B, L) → vectors (1, T, H) or (B, L, H); see `CpuLibrary.embeddings`."""
        original = self._original()
        assert original is not None
        inputs = {**dict(zip(self._parameters, args, strict=False)), **kwargs}
        ids, types, positions = (inputs.pop(name, None) for name in _IDS)
        module: Any = original.__self__
        can_run = _are_rows(ids, positions) and (types is None or _are_rows(ids, types))
        others = any(isinstance(each, Tensor) or each for each in inputs.values())
        if not can_run or others or module.word_embeddings.weight.dtype != torch.float32:
            return original(*args, **kwargs)
        types = types if types is None else types.contiguous()
        return self._library.embeddings(ids.contiguous(), types, positions.contiguous(), _weights_of(module))


def _can_fuse(embeddings: nn.Module) -> bool:
    parts = dict(embeddings.named_children())
    tables = [parts.pop(name) for name in (_WORDS, _TYPES, _POSITIONS) if name in parts]
    norm = parts.get("LayerNorm")
    if set(parts) != _OTHERS or not {_WORDS, _POSITIONS} <= dict(embeddings.named_children()).keys():
        return False
    plain = all(type(table) is nn.Embedding and table.max_norm is None for table in tables)
    plain &= type(norm) is nn.LayerNorm and norm.bias is not None
    widths = {table.weight.shape[1] for table in tables if isinstance(table, nn.Embedding)}
    return plain and len(widths) == 1 and not widths.pop() % _WIDTH_MULTIPLE


def _are_rows(ids: object, others: object) -> bool:
    """Whether both are ids of the same tokens."""
    return (
        isinstance(ids, Tensor) and isinstance(others, Tensor)
        and ids.dtype == others.dtype == torch.int64 and ids.shape == others.shape
    )  # fmt: skip


def _weights_of(embeddings: Any) -> EmbeddingWeights:
    """The current addresses: parameters move when a model is cast."""
    types = getattr(embeddings, _TYPES, None)
    tables = (Table() if each is None else _table(each) for each in (embeddings.word_embeddings, types))
    width = embeddings.word_embeddings.embedding_dim
    return EmbeddingWeights(*tables, _table(embeddings.position_embeddings), norm_of(embeddings.LayerNorm), width)


def _table(embedding: nn.Embedding) -> Table:
    return Table(embedding.weight.data_ptr(), embedding.num_embeddings)
