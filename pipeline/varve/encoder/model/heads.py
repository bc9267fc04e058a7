"""What stands on top of the encoder: the pooler and the classification head, run on vectors that are already there.

A head is run by its own code, not by ours: the classification model is called with an encoder that hands back the
finished vectors. gate.py compares the result with the whole model at load. Several threads may call at once.
"""

from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling


def run_pooler(model: PreTrainedModel, cls_WH: Tensor) -> Tensor:
    """pooler_output from the first tokens' vectors of the last layer: (W, H).

    Source: BERT, Devlin et al. 2018: tanh(W · cls + b); the module in the checkpoint decides.
    """
    pooler: Any = model.pooler
    if isinstance(pooler, nn.Linear):  # ALBERT and BigBird keep the activation beside it
        activation: Any = getattr(model, "pooler_activation", None) or model.activation
        return activation(pooler(cls_WH)).float()
    return pooler(cls_WH[:, None]).float()


def takes_mean(classifier: PreTrainedModel) -> bool:
    """Whether the head works on the mean of the last layer instead of the first token (ModernBERT's may)."""
    return getattr(classifier.config, "classifier_pooling", "cls") == "mean"


class _Finished(nn.Module):
    """Stands in for the encoder of a classification model and returns vectors that were computed before."""

    def __init__(self, vectors_WH: Tensor, pooled_WH: Tensor | None) -> None:
        super().__init__()
        self._output = BaseModelOutputWithPooling(
            last_hidden_state=vectors_WH[:, None],  # pyright: ignore[reportArgumentType]
            pooler_output=pooled_WH,  # pyright: ignore[reportArgumentType]
        )

    def forward(self, *_args: object, **_kwargs: object) -> BaseModelOutputWithPooling:
        return self._output


def run_head(classifier: PreTrainedModel, vectors_WH: Tensor, pooled_WH: Tensor | None) -> Tensor:
    """Logits of the classification head: (W, labels) float32.

    Args:
        classifier: a ...ForSequenceClassification model.
        vectors_WH: what the head looks at in the last layer: the first token's vectors, or the means (`takes_mean`).
        pooled_WH: pooler_output, for heads that stand on it.
    """
    head = copy(classifier)  # it shares the modules; another thread's call has its own vectors in the encoder's place
    finished = {classifier.base_model_prefix: _Finished(vectors_WH, pooled_WH)}
    head._modules = {**classifier._modules, **finished}  # noqa: SLF001 (torch copies a module's tree or nothing of it)
    ones = torch.ones(len(vectors_WH), 1, dtype=torch.long, device=vectors_WH.device)
    return head(input_ids=ones, attention_mask=ones).logits.float()
