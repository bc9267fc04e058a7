"""Layers as BERT's family writes them over packed rows, each as one call of compiled code.

What the library does between the steps of a layer is three percent of a small model's pass, for the kernel leaves
nothing of it in a core's caches. Knows nothing of packs. Invariants: a layer does as it did wherever a pass is not
packed; gate.py compares the model with these layers against the one that it was.
"""

from ctypes import pointer
from operator import attrgetter
from typing import Any, Self
from weakref import WeakMethod

from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.encoder.kernel import DIM, Activation, Parts
from pipeline.encoder.layers import find_layers
from pipeline.encoder.linear import FeedForward, Linear, Panels, norm_of
from pipeline.encoder.mpnet import PackedBias

# Where a layer's parts stand in it: queries, keys, values, output and norm of attention, the feed-forward block (where
# linear.py puts it) and its norm, and how wide a head is. BERT's kin, DistilBERT, MPNet.
_WRITTEN = (
    (
        *(f"attention.self.{name}" for name in ("query", "key", "value")),
        *("attention.output.dense", "attention.output.LayerNorm", "output", "output.norm"),
        "attention.self.attention_head_size",
    ),
    (
        *(f"attention.{name}_lin" for name in ("q", "k", "v", "out")),
        *("sa_layer_norm", "ffn.lin1", "output_layer_norm"),
        "attention.attention_head_size",
    ),
    (
        *(f"attention.attn.{name}" for name in ("q", "k", "v", "o")),
        *("attention.LayerNorm", "output", "output.norm"),
        "attention.attn.attention_head_size",
    ),
)


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

    def __init__(self, layer: Any, *parts: Any) -> None:
        """Of a layer that `of` takes, and its parts in the order of their names."""
        *panels, after_attention, block, after_block, head_dim = parts
        # Weak, for the layer holds this: a cycle would keep dropped layers in memory.
        self._steps, self._kernel = WeakMethod(layer.forward), block.first.kernel
        self._parts = Parts(
            *(pointer(each.weights) for each in (*panels, block.first, block.second)),
            *(pointer(norm_of(each)) for each in (after_attention, after_block)),
            *(block.become, block.first.in_features // head_dim, head_dim, head_dim**-0.5),
        )

    @classmethod
    def of(cls, layer: nn.Module) -> Self | None:
        """For a layer whose modules are BERT's and are in the kernel as far as they can be; None for any other."""
        found = filter(None, (_parts(layer, names) for names in _WRITTEN))
        return next((cls(layer, *parts) for parts in found if _fit(*parts)), None)

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """(1, T, H) of a packed row → the same; anything else goes by the layer's own steps."""
        rows = hidden_states.contiguous()
        if kwargs.get("runs") is not None:
            return self._kernel.layer(rows, self._parts, kwargs["cu_seq_lens_q"], kwargs["max_length_q"])
        if len(args) > 1 and isinstance(bias := args[1], PackedBias):
            return (self._kernel.layer(rows, self._parts, bias.cu, bias.longest, bias.by_distance),)
        steps = self._steps()
        assert steps is not None
        return steps(hidden_states, *args, **kwargs)


def _parts(layer: nn.Module, names: tuple[str, ...]) -> tuple[Any, ...] | None:
    """What stands under the names; None where one is lacking, or where a module stands beside them."""
    beside = (name for name, module in layer.named_modules() if _computes(module) and not name.startswith(names))
    if next(beside, None) is not None:
        return None
    try:
        return attrgetter(*names)(layer)
    except AttributeError:
        return None


def _computes(module: nn.Module) -> bool:
    """Whether a module is one that changes what goes through it while nothing is trained."""
    return not (list(module.children()) or isinstance(module, nn.Dropout | nn.Identity))


def _fit(*parts: Any) -> bool:
    """Whether the kernel takes a layer of these parts."""
    *panels, after_attention, block, after_block, head_dim = parts
    if not (isinstance(block, FeedForward) and all(isinstance(each, Panels) for each in panels)):
        return False
    width = block.first.in_features
    plain = all(isinstance(each, nn.LayerNorm) and each.bias is not None for each in (after_attention, after_block))
    plain &= all(each.become is Activation.NONE for each in panels if isinstance(each, Linear))
    square = all((each.in_features, each.out_features) == (width, width) for each in panels)
    return plain and square and head_dim % DIM == 0 and width % head_dim == 0
