"""Packed attention for MPNet, whose layers add a learned bias by relative position in code of their own.

Within one window the bias depends on the distance of two tokens alone, so what is said of all distances in the pack's
longest window serves all its windows. It goes where the library passes its own bias from the model to each layer. The
model's own code runs whenever a pass brings no runs.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.mpnet.modeling_mpnet import MPNetModel, MPNetSelfAttention

from varve.encoder.kernels.cpu_library import BEYOND, find_cpu_library, takes
from varve.encoder.model.attention import Runs, attend_runs


@dataclass(frozen=True, slots=True)
class PackedBias:
    """What the layers get in place of the bias where a row is packed: its windows, and the bias within them."""

    cu_seqlens: Tensor  # (W + 1,) int32 where each starts
    longest: int
    runs: Runs
    # (heads, 2 longest + BEYOND - 1) by how far the query stands behind the key, from -(longest - 1) on.
    by_distance: Tensor

    def square(self, length: int) -> Tensor:
        """(heads, L, L) for windows of one length: (query, key)."""
        first = self.longest - length
        falling = self.by_distance[:, first : first + 2 * length - 1].flip(1)
        return falling.unfold(1, length, 1).flip(1)


def adapt_mpnet(model: PreTrainedModel) -> bool:
    """Let an MPNet take packed rows; returns whether the model is one.

    Source: Song et al. 2020, MPNet, with the relative position bias of T5 (Raffel et al. 2019, section 2.1).
    """
    if not isinstance(model, MPNetModel):
        return False
    current = threading.local()

    def remember(_module: nn.Module, _args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        packed = inputs.get("runs") is not None
        current.windows = (inputs["cu_seq_lens_q"], inputs["max_length_q"], inputs["runs"]) if packed else None

    model.register_forward_pre_hook(remember, with_kwargs=True)
    encoder: Any = model.encoder
    encoder.compute_position_bias = _by_distance(encoder, encoder.compute_position_bias, current)
    for module in model.modules():
        if isinstance(module, MPNetSelfAttention):
            module.forward = _within(module, module.forward)
    return True


def _by_distance(encoder: Any, own: Callable[..., Tensor], current: threading.local) -> Callable[..., Any]:
    def compute_position_bias(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if current.windows is None:
            return own(x, *args, **kwargs)
        cu_seqlens, longest, runs = current.windows
        behind = torch.arange(1 - longest, longest + BEYOND, device=x.device)
        by_distance = encoder.relative_attention_bias(encoder.relative_position_bucket(-behind)).T.contiguous()
        return PackedBias(cu_seqlens, longest, runs, by_distance)

    return compute_position_bias


def _within(attention: Any, own: Callable[..., Any]) -> Callable[..., Any]:
    @torch.compiler.disable(reason="a bias for each run of windows is not the compiler's to fuse")
    def forward(hidden: Tensor, mask: Tensor | None = None, bias: Any = None, **kwargs: Any) -> Any:
        if not isinstance(bias, PackedBias):
            return own(hidden, mask, bias, **kwargs)
        heads = len(bias.by_distance), -1
        q, k, v = (of(hidden)[0].unflatten(-1, heads) for of in (attention.q, attention.k, attention.v))
        if takes(q, k, v) and (kernel := find_cpu_library()):
            out = kernel.attend(q, k, v, bias.cu_seqlens, bias.longest, None, bias=bias.by_distance)
        else:
            out = attend_runs(q, k, v, bias.runs, None, lambda length: bias.square(length).to(q.dtype)[None])
        return (attention.o(out.flatten(1)[None]),)

    return forward
