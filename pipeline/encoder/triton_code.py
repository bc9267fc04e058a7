"""What a GPU computes in one pass over memory where torch takes several: Triton's kernels, and how each is launched.

Knows nothing of models and packs. Invariants: sums are made in float32, in an order that is always the same; what is
not finite stays so. Importing this file needs Triton, which comes with torch's CUDA builds: gpu.py looks for it.
"""

# ruff: noqa: ANN001, ANN202 (a kernel's arguments are typed by what it is launched with)
# pyright: reportMissingImports=false, reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

_LOG2_E = 1.4426950408889634


def mean_of_windows(hidden_TH: Tensor, cu: Tensor) -> Tensor:
    """The mean of all token vectors of each window: (W, H) float32 of any floating dtype, read once.

    Args:
        hidden_TH: token vectors of W windows, end to end.
        cu: (W + 1,) where windows start.
    """
    tokens_T, width = hidden_TH.shape
    windows = len(cu) - 1
    # A program takes some columns of a window. Short windows leave it little to do: there it takes all of them.
    if tokens_T < 32 * windows:
        columns, rows, warps = min(1024, triton.next_power_of_2(width)), 4, 4
    else:
        columns, rows, warps = (128, 16, 4) if tokens_T < 256 * windows else (128, 64, 8)
    means = torch.empty(windows, width, device=hidden_TH.device, dtype=torch.float32)
    grid = windows, triton.cdiv(width, columns)
    _mean[grid](hidden_TH, hidden_TH.stride(0), cu, means, width, columns, rows, num_warps=warps)
    return means


@triton.jit
def _mean(hidden, stride, cu, means, width: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    window = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    start, stop = tl.load(cu + window), tl.load(cu + window + 1)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(start, stop, ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row[:, None] < stop) & (column[None] < width)
        sums += tl.load(hidden + row[:, None] * stride + column[None], mask=inside, other=0).to(tl.float32)
    mean = tl.sum(sums, 0) / (stop - start).to(tl.float32)
    tl.store(means + window.to(tl.int64) * width + column, mean, mask=column < width)


def norm_of_sum(hidden_TH: Tensor, residual_TH: Tensor, norm: nn.LayerNorm) -> Tensor:
    """LayerNorm of the sum of two: (T, H) of the dtype of the first, which the sum is not rounded to.

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


def attend_windows(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, spans: Tensor, longest: int, scaling: float) -> Tensor:
    """Attention within windows so short that several of them make one tile of a matrix product: (T, heads, D).

    Flash attention gives each window tiles of its own, which a window of 20 tokens leaves empty for the most part. Here
    a tile of queries runs over the keys of all its windows and looks away from those of others.
    Source: FlashAttention-2, Dao 2023, algorithm 1 (the running maximum and sum).

    Args:
        q_THD: half precision, D a power of two from 16 on, its numbers neighbours in memory; keys and values alike.
        k_THD: see q_THD.
        v_THD: see q_THD.
        spans: (2, T) int32: where each token's window starts, and where it ends.
        longest: tokens of the longest window.
        scaling: of the scores.
    """
    tokens_T, heads, head_dim = q_THD.shape
    attended = torch.empty(tokens_T, heads, head_dim, device=q_THD.device, dtype=q_THD.dtype)
    strides = [stride for each in (q_THD, k_THD, v_THD) for stride in each.stride()[:2]]
    # More queries and keys in a step look at more tokens of other windows; fewer leave the tensor cores waiting.
    queries, keys, warps = (32, 32, 2) if longest <= 32 else (128, 64, 4)
    grid = triton.cdiv(tokens_T, queries), heads
    tensors, sizes = (q_THD, k_THD, v_THD, spans, attended), (heads, head_dim, queries, keys)
    _attend[grid](*tensors, tokens_T, scaling * _LOG2_E, *strides, *sizes, num_warps=warps)
    return attended


@triton.jit
def _attend(
    q, k, v, spans, attended, tokens, scaling, q_token, q_head, k_token, k_head, v_token, v_head,
    HEADS: tl.constexpr, DIM: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    first, head = tl.program_id(0) * QUERIES, tl.program_id(1)
    query, number = first + tl.arange(0, QUERIES), tl.arange(0, DIM)
    real = query < tokens
    of_query = tl.load(spans + query, mask=real, other=-1)
    at = query[:, None].to(tl.int64) * q_token + head * q_head + number[None]
    queries = tl.load(q + at, mask=real[:, None], other=0)
    largest = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    sums = tl.zeros((QUERIES, DIM), tl.float32)
    stop = tl.load(spans + tokens + tl.minimum(first + QUERIES, tokens) - 1)
    for begin in range(tl.load(spans + first), stop, KEYS):
        key = begin + tl.arange(0, KEYS)
        there, far = key < tokens, key[:, None].to(tl.int64)
        of_key = tl.load(spans + key, mask=there, other=-2)
        keys = tl.load(k + far * k_token + head * k_head + number[None], mask=there[:, None], other=0)
        values = tl.load(v + far * v_token + head * v_head + number[None], mask=there[:, None], other=0)
        # A window whose values are not finite spoils itself, not those beside it: nothing times infinity is no number.
        spoilt = tl.sum((values * 0).to(tl.float32), 1)
        values = tl.where((spoilt == 0)[:, None], values, 0)
        together = of_query[:, None] == of_key[None]
        scores = tl.where(together, tl.dot(queries, keys.T) * scaling, float("-inf"))
        above = tl.maximum(largest, tl.max(scores, 1))
        least = tl.where(above == float("-inf"), 0.0, above)  # no key of its window was seen yet
        weights = tl.exp2(scores - least[:, None])
        before = tl.exp2(largest - least)
        total = total * before + tl.sum(weights + tl.where(together, spoilt[None], 0.0), 1)
        sums = tl.dot(weights.to(values.dtype), values, sums * before[:, None])
        largest = above
    at = query[:, None].to(tl.int64) * (HEADS * DIM) + head * DIM + number[None]
    tl.store(attended + at, (sums / total[:, None]).to(attended.dtype.element_ty), mask=real[:, None])
