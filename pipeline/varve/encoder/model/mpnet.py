"""Packed attention for MPNet, whose layers add a learned bias by relative position in their own code.

Within a window the bias depends only on the distance of two tokens, so the biases of the pack's longest window serve
all its windows. They are passed from the model to each layer in place of MPNet's own bias. A pass without `runs` uses
the model's own code.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from varve.encoder.kernels.cpu_library import BIAS_PADDING, can_attend, find_cpu_library
from varve.encoder.model.attention import Runs, attend_runs


@dataclass(frozen=True, slots=True)
class PackedBias:
    """The bias argument of the layers for a packed row: its windows, and the bias within them."""

    cu_seqlens: Tensor  # (W + 1,) int32 first token of each window
    longest: int
    runs: Runs
    # (heads, 2 longest + BIAS_PADDING - 1) by query position - key position, from -(longest - 1) on
    by_distance: Tensor

    def matrix(self, length: int) -> Tensor:
        """(heads, L, L) as (query, key), for windows of one length."""
        first = self.longest - length
        descending = self.by_distance[:, first : first + 2 * length - 1].flip(1)
        return descending.unfold(1, length, 1).flip(1)


def is_mpnet(model: PreTrainedModel) -> bool:
    """Whether the model is transformers' MPNet or a subclass; does not import its module."""
    return any(base.__name__ == "MPNetModel" for base in type(model).__mro__)


def adapt_mpnet(model: PreTrainedModel) -> bool:
    """Let an MPNet take packed rows; returns whether the model is one.

    Source: Song et al. 2020, MPNet, with the relative position bias of T5 (Raffel et al. 2019, section 2.1).
    """
    if not is_mpnet(model):
        return False
    # Private module of transformers: imported for MPNet only, so that a rename cannot affect other models.
    from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention  # noqa: PLC0415 (MPNet only)

    current = threading.local()

    def remember_windows(_module: nn.Module, _args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        packed = inputs.get("runs") is not None
        current.windows = (inputs["cu_seq_lens_q"], inputs["max_length_q"], inputs["runs"]) if packed else None

    model.register_forward_pre_hook(remember_windows, with_kwargs=True)
    encoder: Any = model.encoder
    encoder.compute_position_bias = _replace_bias(encoder, encoder.compute_position_bias, current)
    for module in model.modules():
        if isinstance(module, MPNetSelfAttention):
            module.forward = _replace_attention(module, module.forward)
    return True


def _replace_bias(encoder: Any, original: Callable[..., Tensor], current: threading.local) -> Callable[..., Any]:
    def compute_position_bias(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if current.windows is None:
            return original(x, *args, **kwargs)
        cu_seqlens, longest, runs = current.windows
        distance = torch.arange(1 - longest, longest + BIAS_PADDING, device=x.device)
        by_distance = encoder.relative_attention_bias(encoder.relative_position_bucket(-distance)).T.contiguous()
        return PackedBias(cu_seqlens, longest, runs, by_distance)

    return compute_position_bias


def _replace_attention(attention: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    @torch.compiler.disable(reason="the bias depends on the windows, and there is nothing to fuse")
    def forward(hidden: Tensor, mask: Tensor | None = None, bias: Any = None, **kwargs: Any) -> Any:
        if not isinstance(bias, PackedBias):
            return original(hidden, mask, bias, **kwargs)
        heads = len(bias.by_distance), -1
        q, k, v = (project(hidden)[0].unflatten(-1, heads) for project in (attention.q, attention.k, attention.v))
        if can_attend(q, k, v) and (library := find_cpu_library()):
            out = library.attend(q, k, v, bias.cu_seqlens, bias.longest, None, bias=bias.by_distance)
        else:
            out = attend_runs(q, k, v, bias.runs, None, lambda length: bias.matrix(length).to(q.dtype)[None])
        return (attention.o(out.flatten(1)[None]),)

    return forward
