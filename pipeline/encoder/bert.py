"""BERT's layers over packed rows, each as one call of compiled code.

What the library does between the steps of a layer is three percent of a small model's pass, for the kernel leaves
nothing of it in a core's caches. Knows nothing of packs. Invariants: a layer does as it did wherever a pass is not
packed; gate.py compares the model with these layers against the one that it was.
"""

from ctypes import pointer
from typing import Any, Self
from weakref import WeakMethod

from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.encoder.kernel import DIM, Activation, Parts
from pipeline.encoder.layers import find_layers
from pipeline.encoder.linear import FeedForward, Linear, LinearNorm, norm_of

# What a layer of BERT's family, its attention, and what attends in it are made of: nothing else may stand beside it.
_LAYER, _ATTENTION, _ATTENDS = {"attention", "intermediate", "output"}, {"self", "output"}, {"query", "key", "value"}


def join_steps(model: PreTrainedModel) -> bool:
    """Run the layers of a model by one call each, if they are written as BERT's and go through the kernel."""
    joined = [(layer, one) for layer in find_layers(model) if (one := OneCall.of(layer))]
    for layer, one in joined:
        layer.forward = one
    return bool(joined)


def part_steps(model: PreTrainedModel, *, last: bool = False) -> None:
    """Undo it, for the last layer alone or for all: their modules are called one by one again."""
    for layer in find_layers(model)[-1:] if last else find_layers(model):
        if isinstance(layer.forward, OneCall):
            del layer.forward


class OneCall:
    """The forward of one layer."""

    def __init__(self, layer: Any) -> None:
        """Of a layer that `of` takes."""
        attends, after, block = layer.attention.self, layer.attention.output, layer.output
        panels = (attends.query, attends.key, attends.value, after.dense, block.first, block.second)
        heads, dim = attends.num_attention_heads, attends.attention_head_size
        # Weak, for the layer holds this: a cycle would keep dropped layers in memory.
        self._steps, self._kernel = WeakMethod(layer.forward), attends.query.kernel
        self._parts = Parts(
            *(pointer(each.weights) for each in panels),
            *(pointer(norm_of(each)) for each in (after.LayerNorm, block.norm)),
            *(block.become, heads, dim, attends.scaling),
        )

    @classmethod
    def of(cls, layer: Any) -> Self | None:
        """For a layer whose modules are BERT's and are in the kernel as far as they can be; None for any other."""
        if _names(layer) != _LAYER or not isinstance(layer.output, FeedForward) or layer.output.norm is None:
            return None
        attention = layer.attention
        if _names(attention) != _ATTENTION or not isinstance(attention.output, LinearNorm):
            return None
        attends, width = attention.self, layer.output.first.in_features
        if _names(attends) - {"dropout"} != _ATTENDS or not hasattr(attends, "scaling"):
            return None
        panels = [attends.query, attends.key, attends.value, attention.output.dense]
        square = all(isinstance(each, Linear) and each.become is Activation.NONE for each in panels[:3])
        square &= all((each.in_features, each.out_features) == (width, width) for each in panels)
        dim = attends.attention_head_size
        fills = dim % DIM == 0 and dim * attends.num_attention_heads == width
        return cls(layer) if square and fills else None

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """(1, T, H) of a packed row → the same; anything else goes by the layer's own steps."""
        if kwargs.get("runs") is None:
            steps = self._steps()
            assert steps is not None
            return steps(hidden_states, *args, **kwargs)
        windows = kwargs["cu_seq_lens_q"], kwargs["max_length_q"]
        return self._kernel.layer(hidden_states.contiguous(), self._parts, *windows)


def _names(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}
