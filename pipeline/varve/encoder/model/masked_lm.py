"""The masked-LM head of a checkpoint: the layers before its projection to the vocabulary, and the projection.

The layers before the projection run their own code: the masked-LM model is called with an encoder that returns its
input embeddings, and with a projection that returns its input. Several threads may call at the same time. Invariants:
the head is float32, whatever the encoder is cast to; it shares the weights of a float32 encoder, except for the copies
that the compiled library reads.
"""

import math
from collections.abc import Mapping
from copy import copy
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from varve.encoder.checkpoint.head import Splade
from varve.encoder.kernels.cpu_library import CpuLibrary, find_cpu_library
from varve.encoder.kernels.cpu_weights import WeightArena, can_pack_weights
from varve.encoder.model.batch import tokenizer_inputs
from varve.encoder.model.fused_linear import Linear
from varve.encoder.model.sparse_pooling import SparseRows, VocabularyProjection
from varve.errors import JobError

_TOLERANCE = 1e-4  # relative, of logits: correct heads differ by about 1e-6, wrong ones by more than 1e-2
_CHECKED_LENGTHS = (3, 9)


class _GivenEncoder(nn.Module):
    """Replaces the encoder, and returns the input embeddings as the vectors of the last layer."""

    def forward(self, *_args: object, inputs_embeds: Any, **_kwargs: object) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=inputs_embeds)


class MaskedLmHead:
    """The masked-LM head of a checkpoint, which gives sparse rows."""

    def __init__(self, layers: nn.Module, projection: VocabularyProjection) -> None:
        """Use `of`.

        Args:
            layers: the masked-LM model without encoder and projection.
            projection: its last layer.
        """
        self._layers, self._projection = layers, projection

    @classmethod
    def of(cls, model: PreTrainedModel) -> Self:
        """Take the head from a ...ForMaskedLM model.

        Args:
            model: in float32; it may be cast or changed afterwards.

        Raises:
            JobError: the model has no linear projection to the vocabulary.
        """
        projection: Any = model.get_output_embeddings()
        if not isinstance(projection, nn.Linear):
            msg = (
                f"model: {type(model).__name__} has no linear layer that projects to the vocabulary, so `splade` is "
                "not available. Use a pooling of token vectors"
            )
            raise JobError(msg)
        library = find_cpu_library() if model.device.type == "cpu" else None
        replaced = {model.base_model: _GivenEncoder(), projection: nn.Identity()}
        layers = _share(model, replaced, library)
        weight_VD = projection.weight.detach()
        bias_V = weight_VD.new_zeros(len(weight_VD)) if projection.bias is None else projection.bias.detach()
        return cls(layers, VocabularyProjection(weight_VD, bias_V, library))

    @property
    def is_batch_invariant(self) -> bool:
        """Whether the bits of a window do not depend on the other windows."""
        in_torch = any(type(module) is nn.Linear for module in self._layers.modules())
        return self._projection.is_batch_invariant and not in_torch

    def reduce(self, hidden_TH: Tensor, cu_seqlens: Tensor, splades: Mapping[str, Splade]) -> dict[str, SparseRows]:
        """The sparse rows of the windows, on the device of the hidden states.

        Args:
            hidden_TH: token vectors of the last layer, of any dtype.
            cu_seqlens: (W + 1,) first token of each window.
            splades: name → reduction.
        """
        rows_TD = self._project_to_inputs(hidden_TH)
        distinct = {splade: self._projection.reduce(rows_TD, cu_seqlens, splade) for splade in set(splades.values())}
        return {name: distinct[splade] for name, splade in splades.items()}

    def logits(self, hidden_TH: Tensor) -> Tensor:
        """(T, V) logits of a few tokens."""
        return self._projection.logits(self._project_to_inputs(hidden_TH))

    def _project_to_inputs(self, hidden_TH: Tensor) -> Tensor:
        """(T, D) inputs of the projection."""
        return self._layers(inputs_embeds=hidden_TH.float()[None]).logits[0]


def _share(module: nn.Module, replaced: Mapping[nn.Module, nn.Module], library: CpuLibrary | None) -> nn.Module:
    """A copy of a module that shares the values of its parameters; later casts of the module do not change the copy.

    Args:
        module: to copy.
        replaced: submodule → what takes its place.
        library: computes the linear layers that it supports.
    """
    if module in replaced:
        return replaced[module]
    twin = copy(module)
    children = {name: child and _share(child, replaced, library) for name, child in module._modules.items()}  # noqa: SLF001 (torch has no public shallow copy)
    tensors = {name: _alias(parameter) for name, parameter in module._parameters.items()}  # noqa: SLF001 (as above)
    twin.__dict__ |= {"_modules": children, "_parameters": tensors}
    if library is not None and can_pack_weights(twin, library):
        return Linear(twin, library, WeightArena(twin.weight.numel(), files=[]))
    return twin


def _alias(parameter: nn.Parameter | None) -> nn.Parameter | None:
    return None if parameter is None else nn.Parameter(parameter.detach(), requires_grad=False)


@torch.inference_mode()
def check_masked_lm_head(
    model: PreTrainedModel, head: MaskedLmHead, max_positions: int | None, *, token_types: bool
) -> None:
    """Compare the head on precomputed vectors with the whole masked-LM model.

    Args:
        model: in float32.
        head: taken from the model.
        max_positions: tokens that the model can take; None: unlimited.
        token_types: the checkpoint's tokenizer gives `token_type_ids`.

    Raises:
        JobError: they differ, so `splade` cannot be computed from the vectors of the encoder.
    """
    encoder: Any = model.base_model
    encoder.set_attn_implementation("eager")
    vocabulary, generator = encoder.config.vocab_size, np.random.default_rng(0)
    for length in _CHECKED_LENGTHS:
        window = generator.integers(vocabulary // 2, vocabulary, min(length, max_positions or length))
        inputs = tokenizer_inputs(encoder, window.astype(np.int32), token_types=token_types)
        want, hidden = model(**inputs).logits[0].float(), encoder(**inputs).last_hidden_state[0]
        if not _difference(head, hidden, want) <= _TOLERANCE:
            msg = (
                f"model: the masked-LM head of {type(model).__name__} does more than layers on each token's vector and "
                "a projection to the vocabulary, so `splade` is not available. Use a pooling of token vectors"
            )
            raise JobError(msg)


def _difference(head: MaskedLmHead, hidden_TH: Tensor, want_TV: Tensor) -> float:
    """Relative difference of the head's logits; infinite if the head fails."""
    try:
        got = head.logits(hidden_TH)
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError):  # it needs more of the encoder
        return math.inf
    if got.shape != want_TV.shape:
        return math.inf
    return float((got - want_TV).norm() / want_TV.norm().clamp_min(1e-12))
