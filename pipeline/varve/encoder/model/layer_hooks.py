"""The layers of a model: where they are, what leaves each of them, and how those above the highest wanted are dropped.

Knows nothing of poolings or batches. Layer 0 is the input of the first layer (the embedding output); layer i is what
the i-th layer call returns; the last index n is the model's own last_hidden_state, which its caller takes from the
model's output, because some models normalise once more after the last layer.
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


class _StopForward(Exception):  # noqa: N818 (not an error: it ends a forward pass whose rest nobody wants)
    """Raised by the highest wanted layer, caught around the forward pass."""


def find_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The modules that are called as layers, in order: one for each layer, or fewer where layers share weights.

    Raises:
        JobError: the model has no such list.
    """
    config = model.config
    wanted = getattr(config, "num_hidden_groups", config.num_hidden_layers)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == wanted:
            return module
    msg = f"model: {type(model).__name__} has no list of {wanted} layers, so its layers can't be told apart"
    raise JobError(msg)


def drop_layers_above(model: PreTrainedModel, top_layer: int) -> None:
    """Free the layers that no feature needs. One layer stays, since its input is layer 0."""
    groups = getattr(model.config, "num_hidden_groups", 1)  # of layers that share weights; which is whose is a division
    if groups > 1:
        return
    kept = max(top_layer, 1)
    layers = find_layers(model)
    if len(layers) == model.config.num_hidden_layers:
        del layers[kept:]
    model.config.num_hidden_layers = min(kept, model.config.num_hidden_layers)


def compile_layers(model: PreTrainedModel) -> bool:
    """Run each layer through torch.compile, with sizes left open; hooks stay outside of what is compiled.

    Layers whose forward was replaced stay as they are: that is faster than what the compiler makes of them.

    Returns:
        Whether any layer was compiled.
    """
    as_written = [layer for layer in find_layers(model) if "forward" not in vars(layer)]
    for layer in as_written:
        layer.forward = torch.compile(layer.forward, dynamic=True)
    return bool(as_written)


class LayerHooks:
    """Hooks on the layers of a model that hand out what leaves each layer, to the thread that runs the pass.

    They stay on the model, so several threads can run passes over shared weights at once.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Put the hooks on the layers that the model has now."""
        self._pass = threading.local()
        for module in find_layers(model):
            module.register_forward_pre_hook(self._before, with_kwargs=True)
            module.register_forward_hook(self._after)

    @contextmanager
    def open(self, wanted: Collection[int], tap: Tap, *, stop_at: int | None) -> Iterator[None]:
        """Call `tap(index, hidden_states)` for each wanted layer while a forward pass runs inside, in this thread.

        Args:
            wanted: indices below the model's last.
            tap: receives the layer's (B, L, H) output.
            stop_at: end the forward pass after this layer; None lets it run through.
        """
        self._pass.now = _Pass(wanted, tap, stop_at)
        try:
            yield
        except _StopForward:
            pass
        finally:
            self._pass.now = None

    def _before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        now: _Pass | None = getattr(self._pass, "now", None)
        if now is not None and now.calls == 0:
            now.left(args[0] if args else kwargs["hidden_states"])

    def _after(self, _module: nn.Module, _args: tuple[Any, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        now: _Pass | None = getattr(self._pass, "now", None)
        if now is not None:
            now.calls += 1
            now.left(output[0] if isinstance(output, tuple) else output)


@dataclass(slots=True)
class _Pass:
    """One forward pass that is under way: what it is asked for, and the layers it has been through."""

    wanted: Collection[int]
    tap: Tap
    stop_at: int | None
    calls: int = 0

    def left(self, hidden: Tensor) -> None:
        """`hidden` is what left layer number `calls`."""
        if self.calls in self.wanted:
            self.tap(self.calls, hidden)
        if self.calls == self.stop_at:
            raise _StopForward
