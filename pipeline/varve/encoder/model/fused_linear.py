"""Linear layers through compiled code (kernel.py), with the steps behind them: activation, gate, residual sum, norm.

Where a model's modules are written as BERT's are, a whole feed-forward block is one call, and so is the projection of
attention's output with its norm; so is a gated block as ModernBERT or Llama's kin write it; any other linear layer is
one by itself. Knows nothing of packs and threads.
Invariants: float32 on the CPU alone; a row's numbers do not depend on the rows beside it; gate.py compares the model
with these layers against the one that it was.
"""

import inspect
from dataclasses import dataclass
from typing import Any, TypeGuard

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import GELUActivation, SiLUActivation

from varve.encoder.kernels.cpu_library import Activation, CpuLibrary, Norm
from varve.encoder.kernels.cpu_weights import PackedWeights, Room, fits, mapped_files
from varve.encoder.model.layer_hooks import find_layers

# (layer, activation, second layer where it stands beside them) as transformers' feed-forward blocks name them: BERT's
# family, DistilBERT, ALBERT, Jina v3.
_INTERMEDIATE = ("dense", "intermediate_act_fn")
_FEED_FORWARD = (
    (*_INTERMEDIATE, ""),
    ("lin1", "activation", "lin2"),
    ("ffn", "activation", "ffn_output"),
    ("fc1", "activation_fn", "fc2"),
)
# (layer, activation, layer of the factors or "" where the upper half of the first gives them, second layer): Nomic,
# EuroBERT, GTE; ModernBERT. Nothing but dropout may stand beside them.
_GATED = (("gate_proj", "act_fn", "up_proj", "down_proj"), ("Wi", "act", "", "Wo"))
_DROPOUT = {"drop", "dropout"}
# What BERT's two outputs are made of, and what they are called with.
_NORMED, _TAKES = {"dense", "LayerNorm", "dropout"}, ["hidden_states", "input_tensor"]
_MOST_DEPTH = 512  # of a block's inner numbers, so many are in memory at once


def multiplies_with(model: nn.Module) -> str:
    """Who computes a model's linear layers: the instructions of the compiled kernel, or "torch"."""
    panels = (module for module in model.modules() if isinstance(module, PackedWeights))
    return next((module.kernel.instructions for module in panels), "torch")


def multiplies_alone(model: nn.Module) -> bool:
    """Whether no linear layer of a model's passes is left to torch, so that a row's bits do not depend on its pack."""
    left = (name for name, module in model.named_modules() if type(module) is nn.Linear)
    return multiplies_with(model) != "torch" and all(name.startswith("pooler.") for name in left)


def use_kernel(model: PreTrainedModel, kernel: CpuLibrary) -> None:
    """Replace every linear layer in the layers of a float32 model on the CPU that the kernel can take.

    Embeddings, pooler and head keep theirs: they see few rows, and other code looks at what they are made of.
    """
    files = mapped_files()
    for layer in find_layers(model):
        floats = sum(module.weight.numel() for module in layer.modules() if fits(module, kernel))
        _Layer(kernel, Room(floats, files)).replace(layer)


class Linear(PackedWeights):
    """`nn.Linear`, with the activation after it if there is one."""

    become = Activation.NONE

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., in) → (..., out)."""
        return self.kernel.linear(hidden.contiguous(), self.weights, self.become)


class LinearNorm(nn.Module):
    """BERT's output of attention: a linear layer, the sum with the residual, and the norm of it."""

    def __init__(self, dense: PackedWeights, norm: nn.LayerNorm) -> None:
        """Of what it was made of."""
        super().__init__()
        self.dense, self.LayerNorm = dense, norm

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """(..., in) and the residual (..., out) → (..., out)."""
        rows, residual = hidden_states.contiguous(), input_tensor.contiguous()
        return self.dense.kernel.linear_norm(rows, residual, self.dense.weights, norm_of(self.LayerNorm))


class FeedForward(nn.Module):
    """Two linear layers with an activation between them; with a norm, that of the sum with a residual."""

    def __init__(
        self, first: PackedWeights, become: Activation, second: PackedWeights, norm: nn.LayerNorm | None
    ) -> None:
        """Of what it was made of."""
        super().__init__()
        self.first, self.become, self.second, self.norm = first, become, second, norm

    def forward(self, hidden_states: Tensor, input_tensor: Tensor | None = None) -> Tensor:
        """(..., H), and the residual where there is a norm, → (..., H)."""
        rows = hidden_states.contiguous()
        residual = rows if input_tensor is None else input_tensor.contiguous()
        norm, call = None if self.norm is None else norm_of(self.norm), self.first.kernel.feed_forward
        return call(rows, residual, self.first.weights, self.become, None, self.second.weights, norm)


class Gated(nn.Module):
    """A feed-forward block whose activated numbers are multiplied with those of a layer beside them.

    Source: GLU Variants Improve Transformer, Shazeer 2020, equation 6.
    """

    def __init__(
        self, first: PackedWeights, become: Activation, factors: PackedWeights | None, second: PackedWeights
    ) -> None:
        """Of what it was made of; the factors come out of the first layer's upper half where they have none."""
        super().__init__()
        self.first, self.become, self.factors, self.second = first, become, factors, second

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(..., H) → (..., H)."""
        rows, inner = hidden_states.contiguous(), self.second.in_features
        factors = self.first.some(inner, 2 * inner) if self.factors is None else self.factors.weights
        call = self.first.kernel.feed_forward
        return call(rows, rows, self.first.some(0, inner), self.become, factors, self.second.weights, None)


@dataclass(frozen=True, slots=True)
class _Layer:
    """What the linear layers of one layer of a model are laid out with."""

    kernel: CpuLibrary
    room: Room

    def replace(self, module: nn.Module) -> None:
        """All linear layers in a module, the largest blocks first."""
        self._replace_outputs(module)
        for names in _FEED_FORWARD:
            self._replace_feed_forward(module, *names)
        for name, child in list(module.named_children()):
            if fits(child, self.kernel):
                setattr(module, name, Linear(child, self.kernel, self.room))
            elif gated := next(filter(None, (self._gated(child, *names) for names in _GATED)), None):
                setattr(module, name, gated)
            elif not isinstance(child, PackedWeights | LinearNorm | FeedForward):
                self.replace(child)

    def _replace_outputs(self, module: nn.Module) -> None:
        """An output with its norm, as behind attention; where `intermediate` stands beside it, both are one block."""
        output = getattr(module, "output", None)
        if not self._is_normed(output):
            return
        block = self._block(getattr(module, "intermediate", None), *_INTERMEDIATE, output.dense, output.LayerNorm)
        if block is None:
            block = LinearNorm(PackedWeights(output.dense, self.kernel, self.room), output.LayerNorm)
        else:
            module.intermediate = nn.Identity()
        module.output = block

    def _replace_feed_forward(self, module: nn.Module, dense: str, activation: str, second: str) -> None:
        """A linear layer with its activation, and the second layer where it stands beside them."""
        if block := self._block(module, dense, activation, getattr(module, second, None), None):
            setattr(module, second, nn.Identity())
        elif become := self._activated(module, dense, activation):
            block = Linear(getattr(module, dense), self.kernel, self.room)
            block.become = become
        else:
            return
        setattr(module, dense, block)
        setattr(module, activation, nn.Identity())

    def _block(
        self, module: nn.Module | None, dense: str, activation: str, second: Any, norm: nn.LayerNorm | None
    ) -> FeedForward | None:
        """A whole feed-forward block, if it is one that the kernel takes."""
        become = self._activated(module, dense, activation)
        if not (become and fits(second, self.kernel)):
            return None
        first = getattr(module, dense)
        if (first.in_features, first.out_features) != (second.out_features, second.in_features):
            return None
        return FeedForward(self._panels(first), become, self._second(second), norm)

    def _gated(self, module: nn.Module, dense: str, activation: str, factors: str, second: str) -> Gated | None:
        """A whole gated block, if it is one that the kernel takes."""
        beside = {name for name, _ in module.named_children()} - {dense, activation, factors, second}
        become, last = self._activated(module, dense, activation), getattr(module, second, None)
        if beside - _DROPOUT or not (become and fits(last, self.kernel)):
            return None
        layers: list[Any] = [getattr(module, name, None) for name in (dense, factors) if name]
        shape = last.out_features, last.in_features if factors else 2 * last.in_features
        if not all(fits(layer, self.kernel) and (layer.in_features, layer.out_features) == shape for layer in layers):
            return None
        first, *beside_it = map(self._panels, layers)
        return Gated(first, become, beside_it[0] if factors else None, self._second(last))

    def _panels(self, linear: nn.Linear) -> PackedWeights:
        return PackedWeights(linear, self.kernel, self.room)

    def _second(self, linear: nn.Linear) -> PackedWeights:
        """In as few depths as the numbers that are in memory at once allow."""
        columns, inner = self.kernel.columns, linear.in_features
        depth = max(depth for depth in range(columns, _MOST_DEPTH + 1, columns) if inner % depth == 0)
        return PackedWeights(linear, self.kernel, self.room, depth=depth)

    def _activated(self, module: nn.Module | None, dense: str, activation: str) -> Activation | None:
        """What becomes of a layer's outputs, if the kernel takes both."""
        if not fits(getattr(module, dense, None), self.kernel):
            return None
        return _activation(getattr(module, activation, None))

    def _is_normed(self, output: nn.Module | None) -> TypeGuard[Any]:
        """Whether a module is the norm of a linear layer's output plus a residual, as BERT writes it."""
        if output is None or {name for name, _ in output.named_children()} != _NORMED:
            return False
        norm, takes = output.LayerNorm, list(inspect.signature(output.forward).parameters)
        plain = type(norm) is nn.LayerNorm and norm.bias is not None and len(norm.normalized_shape) == 1
        return plain and takes == _TAKES and fits(output.dense, self.kernel)


def norm_of(norm: nn.LayerNorm) -> Norm:
    """Where its numbers lie, for a call that ends while it lives."""
    return Norm(norm.weight.data_ptr(), norm.bias.data_ptr(), norm.eps)


def _activation(module: object) -> Activation | None:
    """The activation that a module is, if the kernel has it."""
    if isinstance(module, nn.SiLU | SiLUActivation):
        return Activation.SILU
    exact = isinstance(module, nn.GELU) and module.approximate == "none"
    exact |= type(module) is GELUActivation and module.act is nn.functional.gelu
    return Activation.GELU if exact else None
