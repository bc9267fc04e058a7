"""Attention over one packed row of windows.

Registered with transformers' `AttentionInterface` and deliberately not with `AttentionMaskInterface`, so models build
no mask: windows are kept apart by their offsets. The kwargs are transformers' own `FlashAttentionKwargs`. Invariant:
packed numbers are those of eager attention on each window alone; gate.py compares them for every checkpoint and takes
the dense layout where they differ.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from varve.encoder.kernels.attention_tiles import Tiles
from varve.encoder.kernels.cpu_library import find_cpu_library, takes
from varve.encoder.kernels.gpu_support import find_triton_code

PACKED = "packed"
HALF = (torch.float16, torch.bfloat16)
_TILE_HEADS = (16, 32, 64, 128)  # head dimensions that Triton's matrix products take
# Windows of one length go through torch's own attention where that is faster: of more tokens and head dimensions.
_SHORT_TOKENS, _NARROW_HEADS = 64, 32

Run = tuple[int, int, int]  # first token, windows, length of a run of windows of equal length


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """The runs of windows of equal length, from the first to the last token.

    An object of its own, which torch.compile does not look into: it would compile anew for each number of runs.
    """

    each: Sequence[Run]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where the windows of a packed row are."""

    cu_seqlens: Tensor  # (W + 1,) int32 on the device: where each starts
    longest: int
    runs: Runs
    tiles: Tiles | None = None  # on a GPU, in half precision


@torch.compiler.disable(reason="its ways differ by device and windows, and none of them is the compiler's to fuse")
def packed_attention(
    module: nn.Module,  # noqa: ARG001 (the interface passes it)
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
    """Attention within each window of one packed row.

    Args:
        module: unused.
        query: (1, heads, T, D); key and value alike.
        key: see query.
        value: see query.
        attention_mask: must be None: windows are kept apart by their offsets.
        scaling: of the scores; 1 / sqrt(D) when None.
        sliding_window: tokens attend to neighbours nearer than this.
        cu_seq_lens_q: (W + 1,) int32 on the device.
        max_length_q: tokens of the longest window.
        runs: of windows of equal length, from the first to the last token.
        tiles: of the windows; on a GPU, in half precision.

    Returns:
        (1, T, heads, D), and no weights.
    """
    if attention_mask is not None or runs is None or cu_seq_lens_q is None or max_length_q is None:
        msg = "packed attention takes offsets and runs, and no mask"
        raise ValueError(msg)
    reach = None if sliding_window is None else sliding_window - 1
    q_THD, k_THD, v_THD = (x[0].transpose(0, 1) for x in (query, key, value))
    windows = Bounds(cu_seq_lens_q, max_length_q, runs, tiles)
    return attend(q_THD, k_THD, v_THD, windows, scaling, reach).unsqueeze(0), None


def attend(
    q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, windows: Bounds, scaling: float | None, reach: int | None = None
) -> Tensor:
    """Attention within windows by the fastest way there is: (T, heads, D).

    Args:
        q_THD: queries; keys and values alike.
        k_THD: see q_THD.
        v_THD: see q_THD.
        windows: of the packed row.
        scaling: of the scores; 1 / sqrt(D) when None.
        reach: how far apart two tokens may be; None: any distance.
    """
    cu_seqlens, longest, head_dim = windows.cu_seqlens, windows.longest, q_THD.shape[-1]
    if reach is not None and longest <= reach + 1:
        reach = None
    if windows.tiles is not None and q_THD.dtype in HALF:
        equal = reach is None and longest * (len(cu_seqlens) - 1) == len(q_THD)
        code = find_triton_code() if _fit_tiles(q_THD, k_THD, v_THD) else None
        if code and not (equal and longest > _SHORT_TOKENS and head_dim > _NARROW_HEADS):
            scaling = head_dim**-0.5 if scaling is None else scaling
            return code.attend_windows(q_THD, k_THD, v_THD, windows.tiles, scaling, reach or 0)
        if head_dim % 8 == 0 and not equal:
            return _varlen(q_THD, k_THD, v_THD, cu_seqlens, longest, scaling, reach)
    elif takes(q_THD, k_THD, v_THD) and (kernel := find_cpu_library()):
        return kernel.attend(q_THD, k_THD, v_THD, cu_seqlens, longest, scaling, reach)
    return attend_runs(q_THD, k_THD, v_THD, windows.runs, scaling, lambda length: _band(length, reach, q_THD.device))


def _fit_tiles(*qkv: Tensor) -> bool:
    return all(x.shape[-1] in _TILE_HEADS and x.stride(-1) == 1 and x.shape == qkv[0].shape for x in qkv)


def _varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int, scaling: float | None, reach: int | None
) -> Tensor:
    """Flash attention over offsets: CUDA, half precision."""
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415 (imports CUDA machinery)

    more = {} if reach is None else {"window_size": (reach, reach)}
    if scaling is not None and scaling != q.shape[-1] ** -0.5:
        more["scale"] = scaling  # pyright: ignore[reportArgumentType]
    return varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest, **more)  # pyright: ignore[reportArgumentType, reportReturnType]


def attend_runs(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    runs: Runs,
    scaling: float | None,
    bias: Callable[[int], Tensor | None],
) -> Tensor:
    """Scaled dot-product attention, one call for each run of windows of equal length: (T, heads, D).

    Args:
        q_THD: queries; keys and values alike.
        k_THD: see q_THD.
        v_THD: see q_THD.
        runs: they cover all tokens.
        scaling: of the scores; 1 / sqrt(D) when None.
        bias: length → what is added to the scores of such windows, or where they may look (bool); None: nothing.
    """
    attended = []
    for first, count, length in runs.each:
        part = slice(first, first + count * length)
        q_BHLD, k_BHLD, v_BHLD = (x[part].unflatten(0, (count, length)).transpose(1, 2) for x in (q_THD, k_THD, v_THD))
        out = F.scaled_dot_product_attention(q_BHLD, k_BHLD, v_BHLD, attn_mask=bias(length), scale=scaling)
        attended.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(attended) if len(attended) > 1 else attended[0]


def _band(length: int, reach: int | None, device: torch.device) -> Tensor | None:
    """(L, L) bool: True where two tokens are at most `reach` apart; None where all are."""
    if reach is None or length <= reach + 1:
        return None
    at = torch.arange(length, device=device)
    return (at[:, None] - at[None]).abs() <= reach


AttentionInterface.register(PACKED, packed_attention)


def takes_packed_inputs(model: PreTrainedModel) -> bool:
    """Whether the model's interface lets a packed row through. Necessary, not sufficient: the numbers decide."""
    parameters = inspect.signature(type(model).forward).parameters
    passes_on = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    return bool(getattr(model, "_supports_attention_backend", False)) and "position_ids" in parameters and passes_on


def attends_with(model: PreTrainedModel, head_dim: int) -> str:
    """Who computes the attention of a model that takes packed rows: the compiled kernel's instructions, or "torch".

    Args:
        model: as its passes run it.
        head_dim: of its heads, unless its config says another.
    """
    head = next(model.parameters()).new_empty(1, 1, getattr(model.config, "head_dim", None) or head_dim)
    kernel = find_cpu_library() if takes(head, head, head) else None
    return kernel.registers if kernel else "torch"
