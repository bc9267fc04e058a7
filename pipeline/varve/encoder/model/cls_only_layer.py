"""Computes the highest layer for CLS tokens only, if no feature needs its other tokens.

After attention, every step of a layer works token by token, so CLS vectors need the output projection and the
feed-forward block of one token per window: three quarters of a layer's multiplications are saved. Invariants: lower
layers are computed for all tokens; passes in several threads are independent; results equal the full layer, which
parity_check.py compares.
"""

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from torch import Tensor, nn
from transformers import PreTrainedModel

from varve.encoder.model.fused_layers import unfuse_layers
from varve.encoder.model.layer_hooks import find_layers

# Parameters of the module after attention in BERT's family: the attention output, and the residual.
_AFTER_ATTENTION = ["hidden_states", "input_tensor"]


class ClsOnlyLayer:
    """Reduces a packed row to the first tokens of its windows, after the attention of the model's last layer."""

    def __init__(self, after_attention: nn.Module) -> None:
        """Register the hook on the last layer's first module after attention."""
        self._pass = threading.local()
        after_attention.register_forward_pre_hook(self._select_rows)

    @classmethod
    def of(cls, model: PreTrainedModel) -> Self | None:
        """For the model's last layer; None if layers share a module or have no such module."""
        layers = find_layers(model)
        if len(layers) != model.config.num_hidden_layers:
            return None
        matches = (m for m in layers[-1].modules() if [*inspect.signature(m.forward).parameters] == _AFTER_ATTENTION)
        after_attention = next(matches, None)
        if after_attention is None:
            return None
        unfuse_layers(model, last=True)
        return cls(after_attention)

    @contextmanager
    def only(self, first_W: Tensor) -> Iterator[None]:
        """Within this context and thread, passes return (1, W, H) for the last layer.

        `first_W` holds the index of each window's first token in the packed row.
        """
        self._pass.first = first_W
        try:
            yield
        finally:
            self._pass.first = None

    def _select_rows(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        first = getattr(self._pass, "first", None)
        return args if first is None else tuple(rows[:, first] for rows in args)
