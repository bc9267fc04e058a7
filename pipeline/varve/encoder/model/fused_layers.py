"""BERT layers over packed rows: on a CPU one call of compiled code per layer, on a GPU few kernel launches.

On a CPU the overhead between the steps of a layer is three percent of a small model's pass. On a GPU each step costs a
launch, and separate steps for sums and norms cost memory traffic. Knows nothing of packs. Invariants: passes that are
not packed run the layer's original code; parity_check.py compares the changed model with the original.
"""

from ctypes import pointer
from operator import attrgetter
from typing import Any, Self
from weakref import WeakMethod

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from varve.encoder.kernels.cpu_library import HEAD_DIM_MULTIPLE, Activation, CpuLibrary, LayerWeights
from varve.encoder.kernels.cpu_weights import PackedWeights
from varve.encoder.kernels.gpu_support import find_triton_kernels
from varve.encoder.model.attention import PackedWindows, attend
from varve.encoder.model.fused_linear import FeedForward, Linear, norm_of, repack
from varve.encoder.model.layer_hooks import find_layers
from varve.encoder.model.mpnet import PackedBias

# Attributes of a layer after `use_library`: queries, keys, values, output and norm of attention, the feed-forward block
# and its norm, the head dimension. BERT's family, DistilBERT, MPNet.
_CPU_ATTRIBUTES = (
    """attention.self.query attention.self.key attention.self.value attention.output.dense attention.output.LayerNorm
    output output.norm attention.self.attention_head_size""",
    """attention.q_lin attention.k_lin attention.v_lin attention.out_lin sa_layer_norm
    ffn.lin1 output_layer_norm attention.attention_head_size""",
    """attention.attn.q attention.attn.k attention.attn.v attention.attn.o attention.LayerNorm
    output output.norm attention.attn.attention_head_size""",
)
# The same for torch's modules, where the feed-forward block is a layer, its activation and a layer. BERT's family,
# DistilBERT.
_GPU_ATTRIBUTES = (
    """attention.self.query attention.self.key attention.self.value attention.output.dense attention.output.LayerNorm
    intermediate.dense intermediate.intermediate_act_fn output.dense output.LayerNorm
    attention.self.attention_head_size""",
    """attention.q_lin attention.k_lin attention.v_lin attention.out_lin sa_layer_norm
    ffn.lin1 ffn.activation ffn.lin2 output_layer_norm attention.attention_head_size""",
)


def fuse_layers(model: PreTrainedModel) -> bool:
    """Replace the forward of each layer that is written like BERT's; returns whether any layer was replaced."""
    fused_class = FusedGpuLayer if model.device.type == "cuda" else FusedCpuLayer
    fused = [(layer, forward) for layer in find_layers(model) if (forward := fused_class.of(layer))]
    for layer, forward in fused:
        layer.forward = forward
    return bool(fused)


def unfuse_layers(model: PreTrainedModel, *, last: bool = False) -> None:
    """Restore the original forward of all layers, or of the last layer only."""
    for layer in find_layers(model)[-1:] if last else find_layers(model):
        if isinstance(layer.forward, FusedCpuLayer | FusedGpuLayer):
            del layer.forward


def repack_layers(model: PreTrainedModel, library: CpuLibrary) -> None:
    """Store the weights of all layers for another library, layer by layer, so that they are in memory once."""
    for layer in find_layers(model):
        is_fused = isinstance(layer.forward, FusedCpuLayer)
        if is_fused:
            del layer.forward  # it holds the addresses of the weights
        repack(layer, library)
        if is_fused and (fused := FusedCpuLayer.of(layer)):
            layer.forward = fused


class FusedCpuLayer:
    """The forward of one layer as one call of the compiled library."""

    def __init__(self, layer: Any, *parts: Any) -> None:
        """Take a layer that `of` accepts, and its parts in the order of `_CPU_ATTRIBUTES`."""
        *projections, after_attention, block, after_block, head_dim = parts
        # Weak, because the layer holds this object: a reference cycle would keep dropped layers in memory.
        self._original, self._library = WeakMethod(layer.forward), block.first.library
        self._weights = LayerWeights(
            *(pointer(each.weights) for each in (*projections, block.first, block.second)),
            *(pointer(norm_of(each)) for each in (after_attention, after_block)),
            *(block.activation, block.first.in_features // head_dim, head_dim, head_dim**-0.5),
        )

    @classmethod
    def of(cls, layer: nn.Module) -> Self | None:
        """For a layer written like BERT's whose modules the library supports; None for any other."""
        candidates = filter(None, (_find_parts(layer, each) for each in _CPU_ATTRIBUTES))
        return next((cls(layer, *parts) for parts in candidates if _library_supports(*parts)), None)

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """(1, T, H) of a packed row → the same shape; other passes run the original code."""
        rows = hidden_states.contiguous()
        if kwargs.get("runs") is not None:
            return self._library.layer(rows, self._weights, kwargs["cu_seq_lens_q"], kwargs["max_length_q"])
        if len(args) > 1 and isinstance(bias := args[1], PackedBias):
            return (self._library.layer(rows, self._weights, bias.cu_seqlens, bias.longest, bias.by_distance),)
        original = self._original()
        assert original is not None
        return original(hidden_states, *args, **kwargs)


class FusedGpuLayer:
    """The forward of one layer on a GPU: one product for queries, keys and values, one kernel per sum and norm."""

    def __init__(self, layer: Any, *parts: Any) -> None:
        """Take a layer that `of` accepts, and its parts in the order of `_GPU_ATTRIBUTES`."""
        *self._projections, self._output, self._after_attention = parts[:5]
        self._first, self._activation, self._second, self._after_block, self._head_dim = parts[5:]
        self._original = WeakMethod(layer.forward)
        self._joint_projection = self._join_projections()

    @classmethod
    def of(cls, layer: nn.Module) -> Self | None:
        """For a layer written like BERT's with modules of torch; None for any other."""
        candidates = filter(None, (_find_parts(layer, each) for each in _GPU_ATTRIBUTES))
        return next((cls(layer, *parts) for parts in candidates if _are_torch_modules(*parts)), None)

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """(1, T, H) of a packed row → the same shape; other passes run the original code."""
        runs = kwargs.get("runs")
        if runs is None:
            original = self._original()
            assert original is not None
            return original(hidden_states, *args, **kwargs)
        windows = PackedWindows(kwargs["cu_seq_lens_q"], kwargs["max_length_q"], runs, kwargs.get("tiles"))
        rows = hidden_states[0].contiguous()
        if self._joint_projection[0].dtype != rows.dtype:
            self._joint_projection = self._join_projections()
        q, k, v = linear(rows, *self._joint_projection).unflatten(1, (3, -1, self._head_dim)).unbind(1)
        attended = self._output(attend(q, k, v, windows, None).flatten(1))
        rows = _norm_of_sum(attended, rows, self._after_attention)
        inner = self._second(self._activation(self._first(rows)))
        return _norm_of_sum(inner, rows, self._after_block)[None]

    def _join_projections(self) -> tuple[Tensor, Tensor]:
        """(3 H, H) weights and (3 H,) biases, in the current dtype of the projections."""
        return (
            torch.cat([each.weight for each in self._projections]),
            torch.cat([each.bias for each in self._projections]),
        )


def _norm_of_sum(hidden_TH: Tensor, residual_TH: Tensor, norm: nn.LayerNorm) -> Tensor:
    if hidden_TH.is_cuda and (triton_kernels := find_triton_kernels()):
        return triton_kernels.norm_of_sum(hidden_TH, residual_TH, norm)
    return norm(hidden_TH + residual_TH)


def _find_parts(layer: nn.Module, attributes: str) -> tuple[Any, ...] | None:
    """The attributes of a layer; None if one is missing, or if the layer has other modules that compute."""
    names = tuple(attributes.split())
    for name, module in layer.named_modules():
        inactive = list(module.children()) or isinstance(module, nn.Dropout | nn.Identity)
        if not (inactive or name.startswith(names)):
            return None
    try:
        return attrgetter(*names)(layer)
    except AttributeError:
        return None


def _are_torch_modules(*parts: Any) -> bool:
    """Whether the parts of a layer are torch's own modules, all with biases."""
    query, key, value, output, after_attention, first, _, second, after_block, _ = parts
    linear_layers = (query, key, value, output, first, second)
    linears = all(type(each) is nn.Linear and each.bias is not None for each in linear_layers)
    norms = all(type(each) is nn.LayerNorm and each.bias is not None for each in (after_attention, after_block))
    return linears and norms and query.weight.shape == key.weight.shape == value.weight.shape


def _library_supports(*parts: Any) -> bool:
    """Whether the compiled library supports a layer with these parts."""
    *projections, after_attention, block, after_block, head_dim = parts
    if not (isinstance(block, FeedForward) and all(isinstance(each, PackedWeights) for each in projections)):
        return False
    width = block.first.in_features
    plain = all(isinstance(each, nn.LayerNorm) and each.bias is not None for each in (after_attention, after_block))
    plain &= all(each.activation is Activation.NONE for each in projections if isinstance(each, Linear))
    square = all((each.in_features, each.out_features) == (width, width) for each in projections)
    return plain and square and head_dim % HEAD_DIM_MULTIPLE == 0 and width % head_dim == 0
