"""Triton kernels for operations that take torch several passes over GPU memory, and the functions that launch them.

Knows nothing of models and packs. Invariants: sums are computed in float32, always in the same order; NaN and infinity
are propagated. Importing this file needs Triton, which comes with torch's CUDA builds; use `find_triton_kernels`.
"""

# ruff: noqa: ANN001, ANN202 (the launch determines the types of a kernel's arguments)
# pyright: reportMissingImports=false, reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from varve.encoder.kernels.attention_tiles import Tiles

_LOG2_E = 1.4426950408889634


def mean_of_windows(hidden_TH: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The mean of the token vectors of each window: (W, H) float32.

    Args:
        hidden_TH: token vectors of all windows, of any floating dtype.
        cu_seqlens: (W + 1,) first token of each window.
    """
    tokens_T, width = hidden_TH.shape
    windows = len(cu_seqlens) - 1
    # One program computes some columns of a window. For short windows that is too little work: it computes all columns.
    if tokens_T < 32 * windows:
        columns, rows, warps = min(1024, triton.next_power_of_2(width)), 4, 4
    else:
        columns, rows, warps = (128, 16, 4) if tokens_T < 256 * windows else (128, 64, 8)
    means = torch.empty(windows, width, device=hidden_TH.device, dtype=torch.float32)
    grid = windows, triton.cdiv(width, columns)
    _mean[grid](hidden_TH, hidden_TH.stride(0), cu_seqlens, means, width, columns, rows, num_warps=warps)
    return means


@triton.jit
def _mean(hidden, stride, cu_seqlens, means, width: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    window = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    start, stop = tl.load(cu_seqlens + window), tl.load(cu_seqlens + window + 1)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(start, stop, ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row[:, None] < stop) & (column[None] < width)
        sums += tl.load(hidden + row[:, None] * stride + column[None], mask=inside, other=0).to(tl.float32)
    mean = tl.sum(sums, 0) / (stop - start).to(tl.float32)
    tl.store(means + window.to(tl.int64) * width + column, mean, mask=column < width)


def norm_of_sum(hidden_TH: Tensor, residual_TH: Tensor, norm: nn.LayerNorm) -> Tensor:
    """LayerNorm of hidden_TH + residual_TH: (T, H) in the dtype of hidden_TH. The sum itself stays in float32.

    Source: Layer Normalization, Ba, Kiros & Hinton 2016, equation 4.
    """
    tokens_T, width = hidden_TH.shape
    normed = torch.empty_like(hidden_TH)
    columns = triton.next_power_of_2(width)
    rows = 4 if columns <= 512 else 2
    grid = (triton.cdiv(tokens_T, rows),)
    weights = norm.weight, norm.bias
    _norm[grid](hidden_TH, residual_TH, *weights, normed, tokens_T, norm.eps, width, columns, rows)
    return normed


@triton.jit
def _norm(
    hidden, residual, weight, bias, normed, tokens, eps, width: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    real = column < width
    inside = (row[:, None] < tokens) & real[None]
    at = row[:, None].to(tl.int64) * width + column[None]
    total = tl.load(hidden + at, mask=inside, other=0).to(tl.float32)
    total += tl.load(residual + at, mask=inside, other=0).to(tl.float32)
    mean = tl.sum(total, 1) / width
    off = tl.where(real[None], total - mean[:, None], 0.0)
    scale = 1 / tl.sqrt(tl.sum(off * off, 1) / width + eps)
    factor = tl.load(weight + column, mask=real, other=0).to(tl.float32)
    shift = tl.load(bias + column, mask=real, other=0).to(tl.float32)
    value = off * scale[:, None] * factor[None] + shift[None]
    tl.store(normed + at, value.to(normed.dtype.element_ty), mask=inside)


def attend_windows(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, tiles: Tiles, scaling: float, reach: int) -> Tensor:
    """Attention within windows, tile by tile: (T, heads, D).

    torch's flash attention over cu_seqlens uses tiles of 128 queries and 128 keys, which short texts leave mostly
    empty. Source: FlashAttention-2, Dao 2023, algorithm 1 (the running maximum and sum).

    Args:
        q_THD: queries in half precision; D is contiguous and a power of two, at least 16.
        k_THD: keys, likewise.
        v_THD: values, likewise.
        tiles: the tiles of the windows.
        scaling: factor of the scores.
        reach: largest distance at which tokens attend to each other; 0: unlimited.
    """
    tokens_T, heads, head_dim = q_THD.shape
    attended = torch.empty(tokens_T, heads, head_dim, device=q_THD.device, dtype=q_THD.dtype)
    strides = [stride for each in (q_THD, k_THD, v_THD) for stride in each.stride()[:2]]
    for group in tiles.groups:
        queries, keys = group.queries, min(group.queries, 64 if head_dim <= 64 else 32)
        warps, stages = {16: 1, 32: 2}.get(queries, 4), 1 if group.longest <= 2 * keys else 3
        tensors, sizes = (q_THD, k_THD, v_THD, tiles.table, attended), (heads, head_dim, queries, keys, reach, stages)
        _attend[(heads * group.count,)](*tensors, group.first, scaling * _LOG2_E, *strides, *sizes, num_warps=warps)
    return attended


@triton.jit(do_not_specialize=["first_tile"])
def _attend(
    q, k, v, tiles, attended, first_tile, scaling, q_token, q_head, k_token, k_head, v_token, v_head,
    HEADS: tl.constexpr, DIM: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, REACH: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    # Consecutive programs compute the heads of one tile, which are adjacent in memory.
    tile, head = first_tile + tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    first, start, stop = tl.load(tiles + 3 * tile), tl.load(tiles + 3 * tile + 1), tl.load(tiles + 3 * tile + 2)
    query, number = first + tl.arange(0, QUERIES), tl.arange(0, DIM)
    real = query < stop
    at = query[:, None].to(tl.int64) * q_token + head * q_head + number[None]
    queries = tl.load(q + at, mask=real[:, None], other=0)
    keys, values = k + head * k_head + number[None], v + head * v_head + number[None]
    if REACH:
        start, stop = tl.maximum(start, first - REACH), tl.minimum(stop, first + QUERIES + REACH)
    largest = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    sums = tl.zeros((QUERIES, DIM), tl.float32)
    rest = start + (stop - start) // KEYS * KEYS
    for begin in tl.range(start, rest, KEYS, num_stages=STAGES):
        largest, total, sums = _see(
            queries, query, keys, values, begin, stop, largest, total, sums, scaling, k_token, v_token,
            WHOLE=True, KEYS=KEYS, REACH=REACH,
        )  # fmt: skip
    if (KEYS == 64) & (stop - rest <= 32):
        if rest < stop:
            largest, total, sums = _see(
                queries, query, keys, values, rest, stop, largest, total, sums, scaling, k_token, v_token,
                WHOLE=False, KEYS=32, REACH=REACH,
            )  # fmt: skip
    elif rest < stop:
        largest, total, sums = _see(
            queries, query, keys, values, rest, stop, largest, total, sums, scaling, k_token, v_token,
            WHOLE=False, KEYS=KEYS, REACH=REACH,
        )  # fmt: skip
    at = query[:, None].to(tl.int64) * (HEADS * DIM) + head * DIM + number[None]
    tl.store(attended + at, (sums / total[:, None]).to(attended.dtype.element_ty), mask=real[:, None])


@triton.jit
def _see(
    queries, query, keys, values, begin, stop, largest, total, sums, scaling, k_token, v_token,
    KEYS: tl.constexpr, REACH: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Update a tile's running maximum and sums with KEYS more keys; WHOLE: none of them is beyond `stop`."""
    key = begin + tl.arange(0, KEYS)
    there, far = key < stop, key[:, None].to(tl.int64)
    # Keys beyond the window are loaded as 0, not only masked: 0 times infinity would be NaN.
    if WHOLE:
        of_keys, of_values = tl.load(keys + far * k_token), tl.load(values + far * v_token)
    else:
        of_keys = tl.load(keys + far * k_token, mask=there[:, None], other=0)
        of_values = tl.load(values + far * v_token, mask=there[:, None], other=0)
    scores = tl.dot(queries, of_keys.T)
    if REACH:
        near = tl.abs(query[:, None] - key[None]) <= REACH
        scores = tl.where(near & there[None], scores, float("-inf"))
    elif not WHOLE:
        scores = tl.where(there[None], scores, float("-inf"))
    above = tl.maximum(largest, tl.max(scores, 1) * scaling)
    least = above
    if REACH:
        least = tl.where(above == float("-inf"), 0.0, above)  # no key within reach so far
    weights = tl.exp2(scores * scaling - least[:, None])
    before = tl.exp2(largest - least)
    sums = tl.dot(weights.to(of_values.dtype), of_values, sums * before[:, None])
    return above, total * before + tl.sum(weights, 1), sums
