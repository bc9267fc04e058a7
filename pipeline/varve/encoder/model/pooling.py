"""One vector per window out of the token vectors of a pack. Pure tensor functions, in float32.

Every function takes the ragged form: `hidden_TH`, the token vectors of all windows end to end, and `cu_seqlens`,
(W + 1,) int64, where each window starts. A window has at least one token. Padded batches are converted to this form
first, so each pooling has one definition.
"""

# T tokens of a pack, W windows, H hidden size

import torch
from torch import Tensor

from varve.encoder.kernels.cpu_library import find_cpu_library
from varve.encoder.kernels.gpu_support import find_triton_code


def cls(hidden_TH: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The first token's vector of each window: (W, H) float32."""
    return hidden_TH[cu_seqlens[:-1]].float()


def last(hidden_TH: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The last real token's vector of each window, special tokens included: (W, H) float32."""
    return hidden_TH[cu_seqlens[1:] - 1].float()


def mean(hidden_TH: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The mean of all token vectors of each window, special tokens included: (W, H) float32.

    Sums in float32 whatever the input's dtype: half precision accumulation drifts with length.
    Source: Sentence-BERT, Reimers & Gurevych 2019, section 3 (MEAN strategy).
    """
    if hidden_TH.is_cuda and (code := find_triton_code()):
        return code.mean_of_windows(hidden_TH, cu_seqlens)
    if hidden_TH.device.type == "cpu" and hidden_TH.dtype == torch.float32 and (kernel := find_cpu_library()):
        return kernel.means(hidden_TH.contiguous(), cu_seqlens)
    return _reduce(hidden_TH, "mean", cu_seqlens)


def maximum(hidden_TH: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The largest value of each dimension over a window's tokens: (W, H) float32.

    Source: Sentence-BERT, Reimers & Gurevych 2019, section 3 (MAX strategy).
    """
    return _reduce(hidden_TH, "max", cu_seqlens)


def _reduce(hidden_TH: Tensor, how: str, cu_seqlens: Tensor) -> Tensor:
    # Checking the offsets would make a GPU's host wait for the pass; they are ours.
    return torch.segment_reduce(hidden_TH.float(), how, offsets=cu_seqlens, unsafe=True)


def pool_rows(pooled_WD: Tensor, weights_W: Tensor, rows: Tensor, pool: str) -> Tensor:
    """Bring the vectors of a row's windows together: (R, D) float32.

    `max` takes the maximum; every other pooling the mean weighted by the windows' tokens, in float64, so that a long
    document does not lose digits.

    Args:
        pooled_WD: one vector per window.
        weights_W: (W,) tokens of each window.
        rows: (R + 1,) the first window of each row.
        pool: the feature's pooling.
    """
    if pool == "max":
        return torch.segment_reduce(pooled_WD, "max", offsets=rows)
    weights = weights_W.double()
    totals = torch.segment_reduce(weights, "sum", offsets=rows)
    sums = torch.segment_reduce(pooled_WD.double() * weights[:, None], "sum", offsets=rows)
    return (sums / totals[:, None]).float()
