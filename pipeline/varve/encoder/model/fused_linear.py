"""Linear layers through compiled code (cpu_library.py), with the next steps: activation, gate, residual sum, norm.

Feed-forward blocks written like BERT's become one call, as do the output projection of attention with its norm, and
gated blocks written like ModernBERT's or Llama's; any other linear layer is replaced alone. Knows nothing of packs and
threads. Invariants: inputs and outputs are float32 on the CPU; the bits of a row do not depend on the other rows;
parity_check.py compares the changed model with the original.
"""

import inspect
from dataclasses import dataclass
from typing import Any, TypeGuard

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import GELUActivation, SiLUActivation

from varve.encoder.kernels.cpu_library import Activation, CpuLibrary, Norm
from varve.encoder.kernels.cpu_weights import PackedWeights, WeightArena, can_pack_weights, mapped_files
from varve.encoder.model.layer_hooks import find_layers

# Attribute names in the feed-forward blocks of transformers: (first layer, activation, second layer, or "" if it
# belongs to another module): BERT's family, DistilBERT, ALBERT, Jina v3.
_INTERMEDIATE = ("dense", "intermediate_act_fn")
_FEED_FORWARD = (
    (*_INTERMEDIATE, ""),
    ("lin1", "activation", "lin2"),
    ("ffn", "activation", "ffn_output"),
    ("fc1", "activation_fn", "fc2"),
)
# (first layer, activation, layer of the factors, or "" if the second half of the first layer's outputs are the factors,
# second layer): Nomic, EuroBERT, GTE; ModernBERT. A block may have no other submodule except dropout.
_GATED = (("gate_proj", "act_fn", "up_proj", "down_proj"), ("Wi", "act", "", "Wo"))
_DROPOUT = {"drop", "dropout"}
# Submodules and parameters of BERT's two output modules.
_OUTPUT_MODULES, _OUTPUT_PARAMETERS = {"dense", "LayerNorm", "dropout"}, ["hidden_states", "input_tensor"]
_MAX_DEPTH = 512  # inner features of a block that are in memory at once


def linear_backend(model: nn.Module) -> str:
    """What computes a model's linear layers: the instruction set of the compiled library, or "torch"."""
    packed = (module for module in model.modules() if isinstance(module, PackedWeights))
    return next((module.library.instructions for module in packed), "torch")


def has_batch_invariant_linears(model: nn.Module) -> bool:
    """Whether torch computes no linear layer of a pass, so that the bits of a row do not depend on its pack."""
    in_torch = (name for name, module in model.named_modules() if type(module) is nn.Linear)
    return linear_backend(model) != "torch" and all(name.startswith("pooler.") for name in in_torch)


def use_library(model: PreTrainedModel, library: CpuLibrary) -> None:
    """Replace every linear layer that the library supports in the layers of a float32 model on the CPU.

    Embeddings, pooler and head are not changed: they process few rows, and other code reads their submodules.
    """
    files = mapped_files()
    for layer in find_layers(model):
        floats = sum(module.weight.numel() for module in layer.modules() if can_pack_weights(module, library))
        _Replacer(library, WeightArena(floats, files)).replace(layer)


def repack(layer: nn.Module, library: CpuLibrary) -> None:
    """Store the weights of one layer of a model, which `use_library` replaced, for another library."""
    packed = [module for module in layer.modules() if isinstance(module, PackedWeights)]
    arena = WeightArena(sum(each.panels.numel() for each in packed), files=[], dtype=library.weight_dtype)
    for each in packed:
        each.repack(library, arena)


class Linear(PackedWeights):
    """`nn.Linear`, with an activation."""

    activation = Activation.NONE

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., in) → (..., out)."""
        return self.library.linear(hidden.contiguous(), self.weights, self.activation)


class LinearNorm(nn.Module):
    """BERT's output of attention: norm(linear layer + residual)."""

    def __init__(self, dense: PackedWeights, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.dense, self.LayerNorm = dense, norm

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """(..., in) and the residual (..., out) → (..., out)."""
        rows, residual = hidden_states.contiguous(), input_tensor.contiguous()
        return self.dense.library.linear_norm(rows, residual, self.dense.weights, norm_of(self.LayerNorm))


class FeedForward(nn.Module):
    """Two linear layers with an activation between them; with a norm, norm(that + residual)."""

    def __init__(
        self, first: PackedWeights, activation: Activation, second: PackedWeights, norm: nn.LayerNorm | None
    ) -> None:
        super().__init__()
        self.first, self.activation, self.second, self.norm = first, activation, second, norm

    def forward(self, hidden_states: Tensor, input_tensor: Tensor | None = None) -> Tensor:
        """(..., H), and with a norm the residual (..., H), → (..., H)."""
        rows = hidden_states.contiguous()
        residual = rows if input_tensor is None else input_tensor.contiguous()
        norm, call = None if self.norm is None else norm_of(self.norm), self.first.library.feed_forward
        return call(rows, residual, self.first.weights, self.activation, None, self.second.weights, norm)


class Gated(nn.Module):
    """A gated feed-forward block: second(activation(first(x)) * factors(x)).

    Without a layer of factors, the second half of the first layer's outputs are the factors.
    Source: GLU Variants Improve Transformer, Shazeer 2020, equation 6.
    """

    def __init__(
        self, first: PackedWeights, activation: Activation, factors: PackedWeights | None, second: PackedWeights
    ) -> None:
        super().__init__()
        self.first, self.activation, self.factors, self.second = first, activation, factors, second

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(..., H) → (..., H)."""
        rows, inner = hidden_states.contiguous(), self.second.in_features
        factors = self.first.output_range(inner, 2 * inner) if self.factors is None else self.factors.weights
        first, call = self.first.output_range(0, inner), self.first.library.feed_forward
        return call(rows, rows, first, self.activation, factors, self.second.weights, None)


@dataclass(frozen=True, slots=True)
class _Replacer:
    """Replaces the linear layers of one layer of a model."""

    library: CpuLibrary
    arena: WeightArena

    def replace(self, module: nn.Module) -> None:
        """Replace all linear layers in a module, as the largest blocks possible."""
        self._replace_output(module)
        for names in _FEED_FORWARD:
            self._replace_feed_forward(module, *names)
        for name, child in list(module.named_children()):
            if can_pack_weights(child, self.library):
                setattr(module, name, Linear(child, self.library, self.arena))
            elif gated := next(filter(None, (self._make_gated(child, *names) for names in _GATED)), None):
                setattr(module, name, gated)
            elif not isinstance(child, PackedWeights | LinearNorm | FeedForward):
                self.replace(child)

    def _replace_output(self, module: nn.Module) -> None:
        """Replace `output`, a linear layer with a norm; if `intermediate` precedes it, both as one block."""
        output = getattr(module, "output", None)
        if not self._is_output(output):
            return
        intermediate = getattr(module, "intermediate", None)
        block = self._make_feed_forward(intermediate, *_INTERMEDIATE, output.dense, output.LayerNorm)
        if block is None:
            block = LinearNorm(self._pack(output.dense), output.LayerNorm)
        else:
            module.intermediate = nn.Identity()
        module.output = block

    def _replace_feed_forward(self, module: nn.Module, dense: str, activation: str, second: str) -> None:
        """Replace a linear layer with its activation, and the second layer if the module has it."""
        if block := self._make_feed_forward(module, dense, activation, getattr(module, second, None), None):
            setattr(module, second, nn.Identity())
        elif supported := self._activation_of(module, dense, activation):
            block = Linear(getattr(module, dense), self.library, self.arena)
            block.activation = supported
        else:
            return
        setattr(module, dense, block)
        setattr(module, activation, nn.Identity())

    def _make_feed_forward(
        self, module: nn.Module | None, dense: str, activation: str, second: Any, norm: nn.LayerNorm | None
    ) -> FeedForward | None:
        """A feed-forward block; None if the library does not support it."""
        supported = self._activation_of(module, dense, activation)
        if not (supported and can_pack_weights(second, self.library)):
            return None
        first = getattr(module, dense)
        if (first.in_features, first.out_features) != (second.out_features, second.in_features):
            return None
        return FeedForward(self._pack(first), supported, self._pack_second(second), norm)

    def _make_gated(self, module: nn.Module, dense: str, activation: str, factors: str, second: str) -> Gated | None:
        """A gated block; None if the library does not support it."""
        others = {name for name, _ in module.named_children()} - {dense, activation, factors, second}
        supported, last = self._activation_of(module, dense, activation), getattr(module, second, None)
        if others - _DROPOUT or not (supported and can_pack_weights(last, self.library)):
            return None
        layers: list[Any] = [getattr(module, name, None) for name in (dense, factors) if name]
        shape = last.out_features, last.in_features if factors else 2 * last.in_features
        for layer in layers:
            if not can_pack_weights(layer, self.library) or (layer.in_features, layer.out_features) != shape:
                return None
        packed = [self._pack(layer) for layer in layers]
        return Gated(packed[0], supported, packed[1] if factors else None, self._pack_second(last))

    def _pack(self, linear: nn.Linear) -> PackedWeights:
        return PackedWeights(linear, self.library, self.arena)

    def _pack_second(self, linear: nn.Linear) -> PackedWeights:
        """Pack with the largest depth up to `_MAX_DEPTH`."""
        columns, inner = self.library.panel_columns, linear.in_features
        depth = max(depth for depth in range(columns, _MAX_DEPTH + 1, columns) if inner % depth == 0)
        return PackedWeights(linear, self.library, self.arena, depth=depth)

    def _activation_of(self, module: nn.Module | None, dense: str, activation: str) -> Activation | None:
        """The activation after a linear layer, if the library supports both."""
        if not can_pack_weights(getattr(module, dense, None), self.library):
            return None
        return _find_activation(getattr(module, activation, None))

    def _is_output(self, output: nn.Module | None) -> TypeGuard[Any]:
        """Whether a module is written like BERT's outputs: the norm of a linear layer plus a residual."""
        if output is None or {name for name, _ in output.named_children()} != _OUTPUT_MODULES:
            return False
        norm, parameters = output.LayerNorm, list(inspect.signature(output.forward).parameters)
        plain = type(norm) is nn.LayerNorm and norm.bias is not None and len(norm.normalized_shape) == 1
        return plain and parameters == _OUTPUT_PARAMETERS and can_pack_weights(output.dense, self.library)


def norm_of(norm: nn.LayerNorm) -> Norm:
    """The norm's addresses, for a call; valid while the norm exists."""
    return Norm(norm.weight.data_ptr(), norm.bias.data_ptr(), norm.eps)


def _find_activation(module: object) -> Activation | None:
    if isinstance(module, nn.SiLU | SiLUActivation):
        return Activation.SILU
    exact = isinstance(module, nn.GELU) and module.approximate == "none"
    exact |= type(module) is GELUActivation and module.act is nn.functional.gelu
    return Activation.GELU if exact else None
