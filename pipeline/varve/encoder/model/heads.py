"""The pooler and the classification head, applied to vectors of the last layer.

A head runs its own code: the classification model is called with an encoder that returns precomputed vectors.
parity_check.py compares the result with the whole model at load. Several threads may call at the same time.
"""

from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling


def run_pooler(model: PreTrainedModel, cls_WH: Tensor) -> Tensor:
    """pooler_output from the first tokens' vectors of the last layer: (W, H) float32.

    Source: BERT, Devlin et al. 2018: tanh(W · cls + b); the checkpoint's own module computes it.
    """
    pooler: Any = model.pooler
    if isinstance(pooler, nn.Linear):  # ALBERT and BigBird have the activation as a separate attribute
        activation: Any = getattr(model, "pooler_activation", None) or model.activation
        return activation(pooler(cls_WH)).float()
    return pooler(cls_WH[:, None]).float()


def takes_mean(classifier: PreTrainedModel) -> bool:
    """Whether the head reads the mean of the last layer instead of the first token (an option of ModernBERT)."""
    return getattr(classifier.config, "classifier_pooling", "cls") == "mean"


class _PrecomputedEncoder(nn.Module):
    """Replaces the encoder of a classification model, and returns precomputed vectors."""

    def __init__(self, vectors_WH: Tensor, pooled_WH: Tensor | None) -> None:
        super().__init__()
        self._output = BaseModelOutputWithPooling(
            last_hidden_state=vectors_WH[:, None],  # pyright: ignore[reportArgumentType] (declared as FloatTensor)
            pooler_output=pooled_WH,  # pyright: ignore[reportArgumentType] (as above)
        )

    def forward(self, *_args: object, **_kwargs: object) -> BaseModelOutputWithPooling:
        return self._output


def run_head(classifier: PreTrainedModel, vectors_WH: Tensor, pooled_WH: Tensor | None) -> Tensor:
    """Logits of the classification head: (W, labels) float32.

    Args:
        classifier: a ...ForSequenceClassification model.
        vectors_WH: first tokens' vectors of the last layer, or its means (`takes_mean`).
        pooled_WH: pooler_output, for heads that read it.
    """
    head = copy(classifier)  # shares the modules, except for the encoder: other threads have other vectors
    encoder = {classifier.base_model_prefix: _PrecomputedEncoder(vectors_WH, pooled_WH)}
    head._modules = {**classifier._modules, **encoder}  # noqa: SLF001 (torch has no public shallow copy)
    ones = torch.ones(len(vectors_WH), 1, dtype=torch.long, device=vectors_WH.device)
    return head(input_ids=ones, attention_mask=ones).logits.float()
