"""The layers of a model: finding them, reading their outputs during a pass, and removing layers that are not needed.

Knows nothing of poolings or batches. Layer 0 is the input of the first layer (the embedding output); layer i is the
output of the i-th layer call. For the last index n, callers use the model's own last_hidden_state, because some models
normalise again after the last layer.
"""

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from varve.errors import JobError

Tap = Callable[[int, Tensor], None]


class _StopForward(Exception):  # noqa: N818 (not an error)
    """Ends a forward pass after the highest layer that is needed."""


def find_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The modules that are called as layers, in order: one per layer, or fewer if layers share weights.

    Raises:
        JobError: the model has no such list.
    """
    config = model.config
    num_modules = getattr(config, "num_hidden_groups", config.num_hidden_layers)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_modules:
            return module
    msg = f"model: {type(model).__name__} has no list of {num_modules} layers, so its layers cannot be read one by one"
    raise JobError(msg)


def drop_layers_above(model: PreTrainedModel, top_layer: int) -> None:
    """Free the layers that no feature needs. One layer stays, since its input is layer 0."""
    if getattr(model.config, "num_hidden_groups", 1) > 1:  # the number of layers determines which group each layer uses
        return
    kept = max(top_layer, 1)
    layers = find_layers(model)
    if len(layers) == model.config.num_hidden_layers:
        del layers[kept:]
    model.config.num_hidden_layers = min(kept, model.config.num_hidden_layers)


def compile_layers(model: PreTrainedModel) -> bool:
    """Run each layer through torch.compile with dynamic shapes; hooks stay outside of the compiled code.

    Layers whose forward was replaced are not compiled: the replacement is faster.

    Returns:
        Whether any layer was compiled.
    """
    originals = [layer for layer in find_layers(model) if "forward" not in vars(layer)]
    for layer in originals:
        layer.forward = torch.compile(layer.forward, dynamic=True)
    return bool(originals)


class LayerHooks:
    """Hooks on the layers of a model that pass each layer's output to the thread that runs the pass.

    The hooks stay on the model, so several threads can run passes over shared weights at the same time.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Register the hooks on the model's current layers."""
        self._thread = threading.local()
        for module in find_layers(model):
            module.register_forward_pre_hook(self._before_layer, with_kwargs=True)
            module.register_forward_hook(self._after_layer)

    @contextmanager
    def open(self, wanted: Collection[int], tap: Tap, *, stop_at: int | None) -> Iterator[None]:
        """Call `tap(index, hidden_states)` for each wanted layer of the forward pass within this context and thread.

        Args:
            wanted: layer indices.
            tap: receives a layer's (B, L, H) output.
            stop_at: end the forward pass after this layer; None: run all layers.
        """
        self._thread.current = _Pass(wanted, tap, stop_at)
        try:
            yield
        except _StopForward:
            pass
        finally:
            self._thread.current = None

    def _before_layer(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        current: _Pass | None = getattr(self._thread, "current", None)
        if current is not None and current.num_calls == 0:
            current.handle(args[0] if args else kwargs["hidden_states"])

    def _after_layer(self, _module: nn.Module, _args: tuple[Any, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        current: _Pass | None = getattr(self._thread, "current", None)
        if current is not None:
            current.num_calls += 1
            current.handle(output[0] if isinstance(output, tuple) else output)


@dataclass(slots=True)
class _Pass:
    """A forward pass in progress."""

    wanted: Collection[int]
    tap: Tap
    stop_at: int | None
    num_calls: int = 0  # of layers

    def handle(self, hidden: Tensor) -> None:
        """Process the output of layer number `num_calls`."""
        if self.num_calls in self.wanted:
            self.tap(self.num_calls, hidden)
        if self.num_calls == self.stop_at:
            raise _StopForward
