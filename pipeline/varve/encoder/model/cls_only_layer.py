"""The highest layer for first tokens alone, where a job looks at nothing else of it.

Once its attention has seen all tokens, every other step of a layer is made token by token, so the CLS vectors need its
output projection and its feed-forward block for one token of each window: three quarters of a layer's products less.
Knows nothing of poolings. Invariants: layers below stay whole; passes in several threads do not disturb each other; the
numbers are those of the whole layer, which gate.py compares.
"""

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from torch import Tensor, nn
from transformers import PreTrainedModel

from varve.encoder.model.fused_layers import part_steps
from varve.encoder.model.layer_hooks import find_layers

# How the module after attention is called throughout BERT's family: what was attended to, and what it is added to.
_AFTER_ATTENTION = ["hidden_states", "input_tensor"]


class ClsOnlyLayer:
    """Cuts a packed row down to the first tokens of its windows behind the attention of the model's last layer."""

    def __init__(self, after_attention: nn.Module) -> None:
        """Put the hook on.

        Args:
            after_attention: of the last layer: its first module that takes no token's neighbours into account.
        """
        self._pass = threading.local()
        after_attention.register_forward_pre_hook(self._cut)

    @classmethod
    def of(cls, model: PreTrainedModel) -> Self | None:
        """For the model's last layer; None where layers share a module or are written in another way."""
        layers = find_layers(model)
        if len(layers) != model.config.num_hidden_layers:
            return None
        found = (module for module in layers[-1].modules() if _parameters(module) == _AFTER_ATTENTION)
        after_attention = next(found, None)
        if after_attention is None:
            return None
        part_steps(model, last=True)
        return cls(after_attention)

    @contextmanager
    def only(self, first_W: Tensor) -> Iterator[None]:
        """Passes inside, in this thread, give (1, W, H) for the last layer.

        Args:
            first_W: where the first token of each window stands in the packed row.
        """
        self._pass.first = first_W
        try:
            yield
        finally:
            self._pass.first = None

    def _cut(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        first = getattr(self._pass, "first", None)
        return args if first is None else tuple(rows[:, first] for rows in args)


def _parameters(module: nn.Module) -> list[str]:
    return list(inspect.signature(module.forward).parameters)
