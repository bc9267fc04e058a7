"""Packed attention for MPNet, whose layers add a learned bias by relative position in code of their own.

Within one window the bias depends on the distance of two tokens alone, so one square as large as the pack's longest
window serves all its windows, cut to their length. The model's own code runs whenever a pass brings no runs.
"""

import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.mpnet.modeling_mpnet import MPNetModel, MPNetSelfAttention

from pipeline.encoder.attention import attend_runs


def adapt_mpnet(model: PreTrainedModel) -> bool:
    """Let an MPNet take packed rows; returns whether the model is one.

    Source: Song et al. 2020, MPNet, with the relative position bias of T5 (Raffel et al. 2019, section 2.1).
    """
    if not isinstance(model, MPNetModel):
        return False
    current = threading.local()

    def remember(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        current.runs = kwargs.get("runs")

    model.register_forward_pre_hook(remember, with_kwargs=True)
    encoder: Any = model.encoder
    encoder.compute_position_bias = _bias_of_longest(encoder.compute_position_bias, current)
    for module in model.modules():
        if isinstance(module, MPNetSelfAttention):
            module.forward = _by_runs(module, module.forward, current)
    return True


def _bias_of_longest(whole: Callable[..., Tensor], current: threading.local) -> Callable[..., Tensor]:
    def compute_position_bias(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if current.runs is not None:
            x = x[:, : max(length for _, _, length in current.runs)]
        return whole(x, *args, **kwargs)

    return compute_position_bias


def _by_runs(attention: Any, own: Callable[..., Any], current: threading.local) -> Callable[..., Any]:
    def forward(hidden: Tensor, mask: Tensor | None = None, bias: Tensor | None = None, **kwargs: Any) -> Any:
        if current.runs is None or bias is None:
            return own(hidden, mask, bias, **kwargs)
        q, k, v = (project(hidden)[0].unflatten(-1, (bias.shape[1], -1)) for project in _projections(attention))
        near = bias.to(q.dtype)
        out = attend_runs(q, k, v, current.runs, None, lambda length: near[..., :length, :length])
        return (attention.o(out.flatten(1)[None]),)

    return forward


def _projections(attention: Any) -> tuple[nn.Module, nn.Module, nn.Module]:
    return attention.q, attention.k, attention.v
