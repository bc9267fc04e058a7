"""Layers as BERT's family writes them over packed rows: on a CPU each as one call of compiled code, on a GPU as few.

What the library does between the steps of a layer is three percent of a small model's pass on a CPU, for the kernel
leaves nothing of it in a core's caches. A GPU waits for each step's launch, and for memory where sums and norms are
steps of their own. Knows nothing of packs. Invariants: a layer does as it did wherever a pass is not packed; gate.py
compares the model with these layers against the one that it was.
"""

from ctypes import pointer
from operator import attrgetter
from typing import Any, Self
from weakref import WeakMethod

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from varve.encoder.kernels.cpu_library import DIM, Activation, Parts
from varve.encoder.kernels.gpu_support import find_triton_code
from varve.encoder.model.attention import Bounds, attend
from varve.encoder.model.fused_linear import FeedForward, Linear, PackedWeights, norm_of
from varve.encoder.model.layer_hooks import find_layers
from varve.encoder.model.mpnet import PackedBias

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
# The same of modules that are torch's own, with the feed-forward block in its parts. BERT's kin, DistilBERT.
_WRITTEN_IN_TORCH = (
    (
        *(f"attention.self.{name}" for name in ("query", "key", "value")),
        *("attention.output.dense", "attention.output.LayerNorm"),
        *("intermediate.dense", "intermediate.intermediate_act_fn", "output.dense", "output.LayerNorm"),
        "attention.self.attention_head_size",
    ),
    (
        *(f"attention.{name}_lin" for name in ("q", "k", "v", "out")),
        *("sa_layer_norm", "ffn.lin1", "ffn.activation", "ffn.lin2", "output_layer_norm"),
        "attention.attention_head_size",
    ),
)


def join_steps(model: PreTrainedModel) -> bool:
    """Run the layers of a model by one call each, or few on a GPU, if they are written as BERT's."""
    found = FewCalls.of if model.device.type == "cuda" else OneCall.of
    joined = [(layer, forward) for layer in find_layers(model) if (forward := found(layer))]
    for layer, forward in joined:
        layer.forward = forward
    return bool(joined)


def part_steps(model: PreTrainedModel, *, last: bool = False) -> None:
    """Undo it, for the last layer alone or for all: their modules are called one by one again."""
    for layer in find_layers(model)[-1:] if last else find_layers(model):
        if isinstance(layer.forward, OneCall | FewCalls):
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
            return (self._kernel.layer(rows, self._parts, bias.cu_seqlens, bias.longest, bias.by_distance),)
        steps = self._steps()
        assert steps is not None
        return steps(hidden_states, *args, **kwargs)


class FewCalls:
    """The forward of one layer on a GPU: one product for queries, keys and values, one call for a sum and its norm."""

    def __init__(self, layer: Any, *parts: Any) -> None:
        """Of a layer that `of` takes, and its parts in the order of their names."""
        *self._projections, self._output, self._after_attention = parts[:5]
        self._first, self._activation, self._second, self._after_block, self._head_dim = parts[5:]
        self._steps = WeakMethod(layer.forward)
        self._joined = self._join()

    @classmethod
    def of(cls, layer: nn.Module) -> Self | None:
        """For a layer whose modules are BERT's and torch's own; None for any other."""
        found = filter(None, (_parts(layer, names) for names in _WRITTEN_IN_TORCH))
        return next((cls(layer, *parts) for parts in found if _are_torchs(*parts)), None)

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """(1, T, H) of a packed row → the same; anything else goes by the layer's own steps."""
        runs = kwargs.get("runs")
        if runs is None:
            steps = self._steps()
            assert steps is not None
            return steps(hidden_states, *args, **kwargs)
        windows = Bounds(kwargs["cu_seq_lens_q"], kwargs["max_length_q"], runs, kwargs.get("tiles"))
        rows = hidden_states[0].contiguous()
        if self._joined[0].dtype != rows.dtype:
            self._joined = self._join()
        q, k, v = linear(rows, *self._joined).unflatten(1, (3, -1, self._head_dim)).unbind(1)
        attended = self._output(attend(q, k, v, windows, None).flatten(1))
        rows = _norm_of_sum(attended, rows, self._after_attention)
        inner = self._second(self._activation(self._first(rows)))
        return _norm_of_sum(inner, rows, self._after_block)[None]

    def _join(self) -> tuple[Tensor, Tensor]:
        """(3 H, H) weights and (3 H,) biases, as the projections hold them now: the model may have been cast."""
        return (
            torch.cat([each.weight for each in self._projections]),
            torch.cat([each.bias for each in self._projections]),
        )


def _norm_of_sum(hidden_TH: Tensor, residual_TH: Tensor, norm: nn.LayerNorm) -> Tensor:
    if hidden_TH.is_cuda and (code := find_triton_code()):
        return code.norm_of_sum(hidden_TH, residual_TH, norm)
    return norm(hidden_TH + residual_TH)


def _are_torchs(*parts: Any) -> bool:
    """Whether the parts are those of a layer of torch's own modules, all with biases."""
    query, key, value, output, after_attention, first, _, second, after_block, _ = parts
    linear_layers = (query, key, value, output, first, second)
    linears = all(type(each) is nn.Linear and each.bias is not None for each in linear_layers)
    norms = all(type(each) is nn.LayerNorm and each.bias is not None for each in (after_attention, after_block))
    return linears and norms and query.weight.shape == key.weight.shape == value.weight.shape


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
    if not (isinstance(block, FeedForward) and all(isinstance(each, PackedWeights) for each in panels)):
        return False
    width = block.first.in_features
    plain = all(isinstance(each, nn.LayerNorm) and each.bias is not None for each in (after_attention, after_block))
    plain &= all(each.become is Activation.NONE for each in panels if isinstance(each, Linear))
    square = all((each.in_features, each.out_features) == (width, width) for each in panels)
    return plain and square and head_dim % DIM == 0 and width % head_dim == 0
