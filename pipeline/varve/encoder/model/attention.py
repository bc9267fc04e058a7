"""Attention over one packed row of windows.

Registered with transformers' `AttentionInterface`, but not with `AttentionMaskInterface`, so models build no mask:
windows are separated by cu_seqlens. The kwargs are transformers' own `FlashAttentionKwargs`. Invariant: results equal
eager attention on each window alone; parity_check.py compares them for every checkpoint, and selects the dense layout
if they differ.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from varve.encoder.kernels.attention_tiles import Tiles
from varve.encoder.kernels.cpu_library import can_attend, find_cpu_library
from varve.encoder.kernels.gpu_support import find_triton_kernels

PACKED = "packed"
HALF = (torch.float16, torch.bfloat16)
_TILE_HEAD_DIMS = (16, 32, 64, 128)  # head dimensions that Triton's matrix products support
# On a GPU, windows of equal length run faster in torch's attention if both the windows and the heads are larger than
# this.
_SHORT_TOKENS, _NARROW_HEADS = 64, 32

Run = tuple[int, int, int]  # first token, number of windows, tokens per window


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """The runs of consecutive windows of equal length in a packed row, in order.

    A class, because torch.compile treats its instances as opaque; it would recompile for each length of a plain list.
    """

    items: Sequence[Run]


@dataclass(frozen=True, slots=True)
class PackedWindows:
    """The windows of a packed row."""

    cu_seqlens: Tensor  # (W + 1,) int32 on the device: first token of each window
    longest: int
    runs: Runs
    tiles: Tiles | None = None  # on a GPU in half precision


@torch.compiler.disable(reason="the branches depend on the device and the windows, and there is nothing to fuse")
def packed_attention(
    module: nn.Module,  # noqa: ARG001 (part of the interface)
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    runs: Runs | None = None,
    tiles: Tiles | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention within each window of one packed row, with the interface of transformers' attention functions.

    Query, key and value are (1, heads, T, D); the result is (1, T, heads, D), and None for the attention weights.
    Tokens attend to tokens at a smaller distance than `sliding_window`. See `PackedWindows` for the last four
    arguments.

    Raises:
        ValueError: the caller passes a mask, or no windows.
    """
    if attention_mask is not None or runs is None or cu_seq_lens_q is None or max_length_q is None:
        msg = "packed attention needs cu_seq_lens_q, max_length_q and runs, and no attention_mask"
        raise ValueError(msg)
    reach = None if sliding_window is None else sliding_window - 1
    q_THD, k_THD, v_THD = (x[0].transpose(0, 1) for x in (query, key, value))
    windows = PackedWindows(cu_seq_lens_q, max_length_q, runs, tiles)
    return attend(q_THD, k_THD, v_THD, windows, scaling, reach).unsqueeze(0), None


def attend(
    q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, windows: PackedWindows, scaling: float | None, reach: int | None = None
) -> Tensor:
    """Attention of queries to the keys and values of their own window, by the fastest available kernel: (T, heads, D).

    `scaling` of the scores is 1 / sqrt(D) when None. `reach` is the largest distance at which tokens attend to each
    other; None: unlimited.
    """
    cu_seqlens, longest, head_dim = windows.cu_seqlens, windows.longest, q_THD.shape[-1]
    if reach is not None and longest <= reach + 1:
        reach = None
    if windows.tiles is not None and q_THD.dtype in HALF:
        equal = reach is None and longest * (len(cu_seqlens) - 1) == len(q_THD)
        triton_kernels = find_triton_kernels() if _fit_tiles(q_THD, k_THD, v_THD) else None
        if triton_kernels and not (equal and longest > _SHORT_TOKENS and head_dim > _NARROW_HEADS):
            scaling = head_dim**-0.5 if scaling is None else scaling
            return triton_kernels.attend_windows(q_THD, k_THD, v_THD, windows.tiles, scaling, reach or 0)
        if head_dim % 8 == 0 and not equal:
            return _flash_attention(q_THD, k_THD, v_THD, cu_seqlens, longest, scaling, reach)
    elif can_attend(q_THD, k_THD, v_THD) and (library := find_cpu_library()):
        return library.attend(q_THD, k_THD, v_THD, cu_seqlens, longest, scaling, reach)
    return attend_runs(q_THD, k_THD, v_THD, windows.runs, scaling, lambda length: _band(length, reach, q_THD.device))


def _fit_tiles(*qkv: Tensor) -> bool:
    return all(x.shape[-1] in _TILE_HEAD_DIMS and x.stride(-1) == 1 and x.shape == qkv[0].shape for x in qkv)


def _flash_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int, scaling: float | None, reach: int | None
) -> Tensor:
    """torch's flash attention over cu_seqlens, on CUDA in half precision."""
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415 (imports CUDA modules)

    options: dict[str, Any] = {} if reach is None else {"window_size": (reach, reach)}
    if scaling is not None and scaling != q.shape[-1] ** -0.5:
        options["scale"] = scaling
    attended: Any = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest, **options)
    return attended


def attend_runs(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    runs: Runs,
    scaling: float | None,
    bias: Callable[[int], Tensor | None],
) -> Tensor:
    """torch's scaled dot-product attention, one call per run: (T, heads, D).

    `bias` maps the length of a run's windows to a mask (bool) or to values that are added to the scores; None: neither.
    """
    attended = []
    for first, count, length in runs.items:
        part = slice(first, first + count * length)
        q_BHLD, k_BHLD, v_BHLD = (x[part].unflatten(0, (count, length)).transpose(1, 2) for x in (q_THD, k_THD, v_THD))
        out = F.scaled_dot_product_attention(q_BHLD, k_BHLD, v_BHLD, attn_mask=bias(length), scale=scaling)
        attended.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(attended) if len(attended) > 1 else attended[0]


def _band(length: int, reach: int | None, device: torch.device) -> Tensor | None:
    """(L, L) bool: True for tokens at a distance of at most `reach`; None if that is all of them."""
    if reach is None or length <= reach + 1:
        return None
    position = torch.arange(length, device=device)
    return (position[:, None] - position[None]).abs() <= reach


AttentionInterface.register(PACKED, packed_attention)


def takes_packed_rows(model: PreTrainedModel) -> bool:
    """Whether the model's interface allows packed rows. Necessary, not sufficient: parity_check.py compares numbers."""
    parameters = inspect.signature(type(model).forward).parameters
    passes_kwargs = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    return bool(getattr(model, "_supports_attention_backend", False)) and "position_ids" in parameters and passes_kwargs


def attention_backend(model: PreTrainedModel, head_dim: int) -> str:
    """What computes the attention of packed rows: the instruction set of the compiled library, or "torch".

    `head_dim` is used if the model's config has none.
    """
    head = next(model.parameters()).new_empty(1, 1, getattr(model.config, "head_dim", None) or head_dim)
    library = find_cpu_library() if can_attend(head, head, head) else None
    return library.vector_instructions if library else "torch"
