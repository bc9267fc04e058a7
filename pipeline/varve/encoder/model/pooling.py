"""Poolings: one vector per window from the token vectors of a pack. Pure tensor functions.

Every function takes the ragged form: `hidden_TH`, the token vectors of all windows, and `cu_seqlens`, (W + 1,) int64,
the first token of each window. A window has at least one token. Padded batches are converted to this form first, so
each pooling has one definition.
"""

# T tokens of a pack, W windows, H hidden size

import torch
from torch import Tensor

from varve.encoder.kernels.cpu_library import find_cpu_library
from varve.encoder.kernels.gpu_support import find_triton_kernels


def cls(hidden_TH: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The first token's vector of each window: (W, H) float32."""
    return hidden_TH[cu_seqlens[:-1]].float()


def last(hidden_TH: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The last token's vector of each window, special tokens included: (W, H) float32."""
    return hidden_TH[cu_seqlens[1:] - 1].float()


def mean(hidden_TH: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The mean of the token vectors of each window, special tokens included: (W, H) float32.

    Sums are float32 for every input dtype: sums in half precision lose digits in long windows.
    Source: Sentence-BERT, Reimers & Gurevych 2019, section 3 (MEAN strategy).
    """
    if hidden_TH.is_cuda and (triton_kernels := find_triton_kernels()):
        return triton_kernels.mean_of_windows(hidden_TH, cu_seqlens)
    if hidden_TH.device.type == "cpu" and hidden_TH.dtype == torch.float32 and (library := find_cpu_library()):
        return library.means(hidden_TH.contiguous(), cu_seqlens)
    return _reduce(hidden_TH, "mean", cu_seqlens)


def maximum(hidden_TH: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The largest value of each dimension over a window's tokens: (W, H) float32.

    Source: Sentence-BERT, Reimers & Gurevych 2019, section 3 (MAX strategy).
    """
    return _reduce(hidden_TH, "max", cu_seqlens)


def mean_sqrt_len(hidden_TH: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The sum of the token vectors of each window, divided by the square root of their number: (W, H) float32.

    Source: sentence-transformers, Pooling, mode mean_sqrt_len_tokens.
    """
    return mean(hidden_TH, cu_seqlens) * cu_seqlens.diff().float().sqrt()[:, None]


def weighted_mean(hidden_TH: Tensor, cu_seqlens: Tensor, first: int = 0) -> Tensor:
    """The mean of the token vectors of each window, weighted by the position of the token: (W, H) float32.

    Args:
        hidden_TH: token vectors.
        cu_seqlens: where each window starts.
        first: position of the first token that is given of each window; the weight of position p is p + 1.

    Source: SGPT, Muennighoff 2022, section 3.2 (position-weighted mean).
    """
    lengths = cu_seqlens.diff()
    starts = cu_seqlens[:-1].repeat_interleave(lengths, output_size=len(hidden_TH))
    weights_T = (torch.arange(1, len(hidden_TH) + 1, device=hidden_TH.device) - starts + first).float()
    sums = _reduce(hidden_TH.float() * weights_T[:, None], "sum", cu_seqlens)
    return sums / _reduce(weights_T, "sum", cu_seqlens)[:, None]


def _reduce(hidden_TH: Tensor, operation: str, cu_seqlens: Tensor) -> Tensor:
    # unsafe: a check of cu_seqlens would make the host wait for the GPU.
    return torch.segment_reduce(hidden_TH.float(), operation, offsets=cu_seqlens, unsafe=True)


def pool_rows(pooled_WD: Tensor, weights_W: Tensor, rows: Tensor, pool: str) -> Tensor:
    """Combine the vectors of each row's windows: (R, D) float32.

    "max" and its variant without the prompt take the maximum; every other pooling takes the mean weighted by the tokens
    of the windows, in float64, so that long documents do not lose digits.

    Args:
        pooled_WD: one vector per window.
        weights_W: (W,) tokens of each window.
        rows: (R + 1,) first window of each row.
        pool: the feature's pooling.
    """
    if pool.startswith("max"):
        return torch.segment_reduce(pooled_WD, "max", offsets=rows)
    weights = weights_W.double()
    totals = torch.segment_reduce(weights, "sum", offsets=rows)
    sums = torch.segment_reduce(pooled_WD.double() * weights[:, None], "sum", offsets=rows)
    return (sums / totals[:, None]).float()
