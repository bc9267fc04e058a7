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


def _reduce(hidden_TH: Tensor, operation: str, cu_seqlens: Tensor) -> Tensor:
    # unsafe: a check of cu_seqlens would make the host wait for the GPU.
    return torch.segment_reduce(hidden_TH.float(), operation, offsets=cu_seqlens, unsafe=True)


def pool_rows(pooled_WD: Tensor, weights_W: Tensor, rows: Tensor, pool: str) -> Tensor:
    """Combine the vectors of each row's windows: (R, D) float32.

    "max" takes the maximum; every other pooling takes the mean weighted by the tokens of the windows, in float64, so
    that long documents do not lose digits.

    Args:
        pooled_WD: one vector per window.
        weights_W: (W,) tokens of each window.
        rows: (R + 1,) first window of each row.
        pool: the feature's pooling.
    """
    if pool == "max":
        return torch.segment_reduce(pooled_WD, "max", offsets=rows)
    weights = weights_W.double()
    totals = torch.segment_reduce(weights, "sum", offsets=rows)
    sums = torch.segment_reduce(pooled_WD.double() * weights[:, None], "sum", offsets=rows)
    return (sums / totals[:, None]).float()
