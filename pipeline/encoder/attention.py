"""Attention over one packed row, and the two layouts in which windows reach a model.

A *packed* batch is one row (1, T) of windows laid end to end, without padding or mask: an attention function registered
with transformers' `AttentionInterface` keeps windows apart by their offsets. It is deliberately not registered with
`AttentionMaskInterface`, so models build no mask. A *dense* batch is padded (B, L) with a mask, for models whose
attention can't be replaced. Both give hidden states back in the ragged form (T, H).

The kwargs are transformers' own `FlashAttentionKwargs`. Invariant: packed numbers are those of eager attention on each
window alone; load.py compares them for every checkpoint and takes the dense layout where they differ.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

PACKED = "packed"


@dataclass(frozen=True, slots=True)
class Batch:
    """What one forward pass takes, and how to read its hidden states."""

    inputs: dict[str, Any]
    cu: Tensor  # (W + 1,) int64 offsets of the windows in the ragged form
    mask: Tensor | None  # (B, L) bool, True at real tokens; None for a packed batch

    def ragged(self, hidden: Tensor) -> Tensor:
        """Bring (1, T, H) or (B, L, H) hidden states into the ragged form (T, H)."""
        return hidden[0] if self.mask is None else hidden[self.mask]


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
    runs: list[tuple[int, int, int]] | None = None,
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
        runs: (first token, windows, length) of each run of windows of equal length.

    Returns:
        (1, T, heads, D), and no weights.
    """
    if attention_mask is not None or runs is None:
        msg = "packed attention takes offsets and runs, and no mask"
        raise ValueError(msg)
    reach = None if sliding_window is None else sliding_window - 1
    q_THD, k_THD, v_THD = (x[0].transpose(0, 1) for x in (query, key, value))
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] % 8 == 0:
        out = _varlen(q_THD, k_THD, v_THD, cu_seq_lens_q, max_length_q, scaling, reach)
    else:
        out = _by_runs(q_THD, k_THD, v_THD, runs, scaling, reach)
    return out.unsqueeze(0), None


def _varlen(
    q: Tensor, k: Tensor, v: Tensor, cu: Tensor | None, longest: int | None, scaling: float | None, reach: int | None
) -> Tensor:
    """Flash attention over offsets: CUDA, half precision."""
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415 (imports CUDA machinery)

    more = {} if reach is None else {"window_size": (reach, reach)}
    if scaling is not None and scaling != q.shape[-1] ** -0.5:
        more["scale"] = scaling  # pyright: ignore[reportArgumentType]
    return varlen_attn(q, k, v, cu, cu, longest, longest, **more)  # pyright: ignore[reportArgumentType, reportReturnType]


def _by_runs(
    q: Tensor, k: Tensor, v: Tensor, runs: list[tuple[int, int, int]], scaling: float | None, reach: int | None
) -> Tensor:
    """Scaled dot-product attention, one call for each run of windows of equal length."""
    out = torch.empty_like(q)
    for first, count, length in runs:
        part = slice(first, first + count * length)
        q_BHLD, k_BHLD, v_BHLD = (x[part].unflatten(0, (count, length)).transpose(1, 2) for x in (q, k, v))
        near = _band(length, reach, q.device) if reach is not None and length > reach + 1 else None
        attended = F.scaled_dot_product_attention(q_BHLD, k_BHLD, v_BHLD, attn_mask=near, scale=scaling)
        out[part] = attended.transpose(1, 2).flatten(0, 1)
    return out


def _band(length: int, reach: int, device: torch.device) -> Tensor:
    """(L, L) bool: True where two tokens are at most `reach` apart."""
    at = torch.arange(length, device=device)
    return (at[:, None] - at[None]).abs() <= reach


AttentionInterface.register(PACKED, packed_attention)


def takes_packed_inputs(model: PreTrainedModel) -> bool:
    """Whether the model's interface lets a packed row through. Necessary, not sufficient: the numbers decide."""
    parameters = inspect.signature(type(model).forward).parameters
    passes_on = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    return bool(getattr(model, "_supports_attention_backend", False)) and "position_ids" in parameters and passes_on


def first_position(model: nn.Module) -> int:
    """The position id of a text's first token: padding_idx + 1 in the RoBERTa family, else 0."""
    for module in model.modules():
        padding_idx = getattr(module, "padding_idx", None)
        if isinstance(padding_idx, int) and isinstance(getattr(module, "position_embeddings", None), nn.Embedding):
            return padding_idx + 1
    return 0


def packed_batch(
    model: PreTrainedModel, ids: NDArray[np.int32], types: NDArray[np.int32] | None, lengths: NDArray[np.int64]
) -> Batch:
    """Lay windows, sorted by length, out as one packed row.

    Args:
        model: decides the first position and whether token types are passed.
        ids: (T,) token ids of the windows, end to end.
        types: (T,) token types, or None.
        lengths: (W,) tokens of each window, ascending.
    """
    device = model.device
    cu_host = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    positions = np.arange(len(ids)) - np.repeat(cu_host[:-1], lengths) + first_position(model)
    cu = torch.from_numpy(cu_host).to(device)
    longest = int(lengths[-1])
    inputs: dict[str, Any] = {
        "input_ids": torch.from_numpy(ids.astype(np.int64))[None].to(device),
        "position_ids": torch.from_numpy(positions)[None].to(device),
        "cu_seq_lens_q": cu.int(),
        "cu_seq_lens_k": cu.int(),
        "max_length_q": longest,
        "max_length_k": longest,
        "runs": _runs(lengths),
    }
    if takes_token_types(model):
        # Models fill in absent types from a buffer as long as their positions, which a packed row outgrows.
        filled = np.zeros(len(ids), np.int64) if types is None else types.astype(np.int64)
        inputs["token_type_ids"] = torch.from_numpy(filled)[None].to(device)
    return Batch(inputs, cu, None)


def dense_batch(
    model: PreTrainedModel, ids: NDArray[np.int32], types: NDArray[np.int32] | None, lengths: NDArray[np.int64]
) -> Batch:
    """Lay windows out as a padded batch with a mask; arguments as in `packed_batch`."""
    device = model.device
    mask = np.arange(int(lengths[-1])) < lengths[:, None]
    pad = model.config.pad_token_id
    padded = np.full(mask.shape, 0 if pad is None else pad, np.int64)
    padded[mask] = ids
    inputs = {
        "input_ids": torch.from_numpy(padded).to(device),
        "attention_mask": torch.from_numpy(mask.astype(np.int64)).to(device),
    }
    if types is not None and takes_token_types(model):
        padded_types = np.zeros(mask.shape, np.int64)
        padded_types[mask] = types
        inputs["token_type_ids"] = torch.from_numpy(padded_types).to(device)
    cu = torch.from_numpy(np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])).to(device)
    return Batch(inputs, cu, torch.from_numpy(mask).to(device))


def takes_token_types(model: PreTrainedModel) -> bool:
    """Whether the model's forward takes token_type_ids."""
    return "token_type_ids" in inspect.signature(type(model).forward).parameters


def _runs(lengths: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """(first token, windows, length) for each run of equal lengths."""
    edges = np.flatnonzero(np.diff(lengths, prepend=0, append=0))
    firsts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])[edges]
    return [
        (int(first), int(stop - start), int(lengths[start]))
        for first, start, stop in zip(firsts[:-1], edges[:-1], edges[1:], strict=True)
    ]
