"""The layers of a model: where they are, what leaves each of them, and how those above the highest wanted are dropped.

Knows nothing of poolings or batches. Layer 0 is the input of the first layer (the embedding output); layer i is what
the i-th layer call returns; the last index n is the model's own last_hidden_state, which its caller takes from the
model's output, because some models normalise once more after the last layer.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.errors import JobError

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
    layers = find_layers(model)
    kept = max(top_layer, 1)
    if len(layers) == model.config.num_hidden_layers:
        del layers[kept:]
    model.config.num_hidden_layers = min(kept, model.config.num_hidden_layers)


@contextmanager
def tapped(layers: nn.ModuleList, wanted: Collection[int], tap: Tap, *, stop_at: int | None) -> Iterator[None]:
    """Call `tap(index, hidden_states)` for each wanted layer while a forward pass runs inside.

    Args:
        layers: from `find_layers`.
        wanted: indices below the model's last.
        tap: receives the layer's (B, L, H) output.
        stop_at: end the forward pass after this layer; None lets it run through.
    """
    calls = 0

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if calls == 0:
            if 0 in wanted:
                tap(0, args[0] if args else kwargs["hidden_states"])
            if stop_at == 0:
                raise _StopForward

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        nonlocal calls
        calls += 1
        if calls in wanted:
            tap(calls, output[0] if isinstance(output, tuple) else output)
        if calls == stop_at:
            raise _StopForward

    handles = [module.register_forward_pre_hook(before, with_kwargs=True) for module in layers]
    handles += [module.register_forward_hook(after) for module in layers]
    try:
        yield
    except _StopForward:
        pass
    finally:
        for handle in handles:
            handle.remove()
