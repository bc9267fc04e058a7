"""The first position id of a model, read from its modules."""

from torch import nn


def first_position(model: nn.Module) -> int:
    """The position id of a text's first token: padding_idx + 1 in the RoBERTa family, 0 in other models."""
    for module in model.modules():
        padding_idx = getattr(module, "padding_idx", None)
        if isinstance(padding_idx, int) and isinstance(getattr(module, "position_embeddings", None), nn.Embedding):
            return padding_idx + 1
    return 0
