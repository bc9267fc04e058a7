"""Sparse rows from a masked-LM head: the projection to the vocabulary, reduced over the tokens of each window.

Knows nothing of models and packs. Invariants: everything is float32; logits are in memory for a few hundred tokens at
once, and for none where the compiled library keeps their maximum only; NaN is kept; the bits of a window do not depend
on the other windows if `is_batch_invariant`.
"""

# T tokens of a pack, W windows, D inputs of the projection, V tokens of the vocabulary

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from varve.encoder.checkpoint.head import Splade
from varve.encoder.kernels.cpu_library import CpuLibrary
from varve.encoder.kernels.cpu_weights import PackedWeights, WeightArena, can_pack_weights

_FLOAT_BYTES = 4
_CPU_TOKENS = 256  # whose logits are in memory at once, 31 MB for a vocabulary of 30,522: fastest of 64 to 512
_CUDA_LOGITS = (256 << 20) // _FLOAT_BYTES
_CPU_MAXIMA = (8 << 20) // _FLOAT_BYTES  # in memory at once, where no logits are
_MAX_PACKED_BYTES = 256 << 20  # of the weight's copy for the library; torch computes with a larger weight


@dataclass(frozen=True, slots=True)
class SparseRows:
    """The weights of W windows that are not 0, window by window."""

    counts: Tensor  # (W,) int64 weights of each window
    ids: Tensor  # (N,) int32 tokens of the vocabulary, ascending within a window
    weights: Tensor  # (N,) float32

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The windows of all parts, in their order."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("counts", "ids", "weights")))

    @classmethod
    def positive(cls, dense_WV: Tensor) -> Self:
        """The values above 0, and NaN."""
        kept = ~(dense_WV <= 0)
        flat = kept.flatten()
        # On the CPU, torch takes four times as long as NumPy.
        places = flat.nonzero()[:, 0] if flat.is_cuda else torch.from_numpy(np.flatnonzero(flat.numpy()))
        ids = places.remainder(dense_WV.shape[1]).int()
        return cls(kept.sum(1), ids, dense_WV.flatten()[places])


class VocabularyProjection:
    """The last linear layer of a masked-LM head. Several threads may call it at the same time."""

    def __init__(self, weight_VD: Tensor, bias_V: Tensor, library: CpuLibrary | None) -> None:
        """Keep the weight; only the library needs a copy.

        Args:
            weight_VD: float32.
            bias_V: float32.
            library: for a weight on the CPU; None: torch computes everything.
        """
        self._bias, self._packed = bias_V, library and _pack(weight_VD, bias_V, library)
        self._weight = weight_VD if self._packed is None else None  # which would keep an untied weight twice
        self._max_tokens = max(1, _CUDA_LOGITS // len(bias_V)) if bias_V.is_cuda else _CPU_TOKENS

    @property
    def is_batch_invariant(self) -> bool:
        """Whether the compiled library computes the products."""
        return self._packed is not None

    def reduce(self, rows_TD: Tensor, cu_seqlens: Tensor, splade: Splade) -> SparseRows:
        """The sparse row of each window.

        Args:
            rows_TD: float32 inputs of the projection.
            cu_seqlens: (W + 1,) first token of each window; a window has at least one token.
            splade: the reduction.
        """
        starts = cu_seqlens.numpy(force=True).astype(np.int64)
        parts = [SparseRows.positive(rows_TD.new_empty(0, len(self._bias)))]
        keeps_maxima = splade.strategy == "max" and self._packed is not None
        for chunk in self._maxima_chunks(starts) if keeps_maxima else self._logit_chunks(starts):
            rows = rows_TD[chunk[0] : chunk[-1]]
            parts.append(self._reduce_chunk(rows, chunk - chunk[0], splade))
        return SparseRows.joined(parts)

    def logits(self, rows_TD: Tensor) -> Tensor:
        """(T, V) logits of a chunk; a view of a buffer that the caller may overwrite."""
        if self._packed is None:
            assert self._weight is not None
            return linear(rows_TD, self._weight, self._bias)
        return self._packed.library.linear(rows_TD.contiguous(), self._packed.weights)[:, : len(self._bias)]

    def _maxima_chunks(self, starts: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """The starts of the windows of each chunk, and the end of the last."""
        windows = max(1, _CPU_MAXIMA // len(self._bias))
        for first in range(0, len(starts) - 1, windows):
            yield starts[first : first + windows + 1]

    def _logit_chunks(self, starts: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """As `_maxima_chunks`; only a chunk of a single window has more than `_max_tokens` tokens."""
        first = 0
        while first < len(starts) - 1:
            fitting = int(np.searchsorted(starts, starts[first] + self._max_tokens, side="right")) - 1
            stop = max(fitting, first + 1)
            yield starts[first : stop + 1]
            first = stop

    def _reduce_chunk(self, rows_TD: Tensor, starts: NDArray[np.int64], splade: Splade) -> SparseRows:
        """The sparse rows of a chunk, whose first window starts at 0.

        Bias, relu and log1p are monotonic in float32 too, so the maximum over the tokens comes first, and log1p is
        applied to the weights that are not 0. A sum needs log1p of every logit.
        """
        if splade.strategy == "sum":
            return SparseRows.positive(self._reduce_logits(rows_TD, starts, splade))
        if self._packed is None:
            maxima_WV = self._reduce_logits(rows_TD, starts, splade)
        else:
            cu_seqlens, packed = torch.from_numpy(starts), self._packed
            products = packed.library.linear_maximum(rows_TD.contiguous(), cu_seqlens, packed.weights)
            maxima_WV = products[:, : len(self._bias)] + self._bias
        sparse = SparseRows.positive(maxima_WV)
        return replace(sparse, weights=_activate(sparse.weights, splade))

    def _reduce_logits(self, rows_TD: Tensor, starts: NDArray[np.int64], splade: Splade) -> Tensor:
        """(W, V) maxima of the logits, or sums of the activated ones. A long window is reduced in steps."""
        is_sum, shape = splade.strategy == "sum", (len(starts) - 1, len(self._bias))
        reduced_WV = rows_TD.new_full(shape, 0.0 if is_sum else -torch.inf)
        for at in range(0, len(rows_TD), self._max_tokens):
            logits = self.logits(rows_TD[at : at + self._max_tokens])
            if is_sum:
                logits = _activate(logits.relu_(), splade)
            spans = np.clip(starts - at, 0, len(logits))
            step_WV = _reduce_windows(logits, spans, splade.strategy)
            reduced_WV = reduced_WV.add_(step_WV) if is_sum else torch.maximum(reduced_WV, step_WV)
        return reduced_WV


def _activate(positive: Tensor, splade: Splade) -> Tensor:
    """log1p, in place. Source: Formal et al. 2021, SPLADE v2, equation 6."""
    return positive.log1p_().log1p_() if splade.twice else positive.log1p_()


def _reduce_windows(logits_TV: Tensor, starts: NDArray[np.int64], strategy: str) -> Tensor:
    """(W, V) the maximum or the sum of each window's logits."""
    if logits_TV.is_cuda:
        offsets = torch.from_numpy(starts).to(logits_TV.device)
        return torch.segment_reduce(logits_TV, strategy, offsets=offsets, unsafe=True)
    # segment_reduce takes twenty times as long on the CPU.
    out = logits_TV.new_empty(len(starts) - 1, logits_TV.shape[1])
    reduce = torch.sum if strategy == "sum" else torch.amax
    for window, (first, stop) in enumerate(pairwise(starts)):
        reduce(logits_TV[first:stop], 0, out=out[window])
    return out


def _pack(weight_VD: Tensor, bias_V: Tensor, library: CpuLibrary) -> PackedWeights | None:
    """A copy of the weight with rows of zeros that fill its last panel; None if the library cannot read the weight."""
    rows, width = weight_VD.shape
    padding = -rows % library.panel_columns
    layer = nn.Linear(width, rows + padding, device="meta")
    if weight_VD.nbytes > _MAX_PACKED_BYTES or not can_pack_weights(layer, library):
        return None
    layer.weight = nn.Parameter(pad(weight_VD, (0, 0, 0, padding)), requires_grad=False)
    layer.bias = nn.Parameter(pad(bias_V, (0, padding)), requires_grad=False)
    return PackedWeights(layer, library, WeightArena(layer.weight.numel(), files=[]))
