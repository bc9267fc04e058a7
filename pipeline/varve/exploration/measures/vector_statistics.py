"""Statistics of the vectors of one feature, from a sample.

Knows nothing of parts and pages. Invariant: all sums are in float64, so that figures of a sample are those of plain
numpy.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varve.encoder.feature_plan import Column
from varve.exploration.measures.principal_components import PrincipalComponents

_MAX_COMPONENTS = 64  # of the spectrum that are shown
_NORM_BINS = 41  # odd: equal norms lie in the middle of one bin
_MIN_SPREAD = 0.01  # of norms, relative to their mean: rounding errors of unit vectors are no distribution
_PAIRS = 10_000
_BLOCK_ROWS = 4096


@dataclass(frozen=True, slots=True)
class VectorStatistics:
    """What is known about a feature. Of forms without statistics (tokens, late, sparse, attentions) the figures are 0.

    Attributes:
        name: of the column.
        family: name of the feature without its layer; the columns of a family differ in the layer.
        layer: None for a feature of several layers.
        width: dimensions.
        dtype: as stored.
        form: `vector`, `windows`, `chunks`, `tokens`, `sparse`, `late`, `clusters` or `attentions`.
        num_vectors: of the sample; 0 for a form without statistics.
        norm_edges: ascending edges of the histogram of Euclidean norms, one more than counts.
        norm_counts: vectors in each bin.
        mean_norm: mean Euclidean norm.
        spectrum: shares of the variance of the first (at most 64) principal components; empty for a feature of very
            many dimensions.
        effective_rank: exp of the entropy of the singular values of the centred sample, divided by their sum (Roy and
            Vetterli 2007, "The effective rank").
        anisotropy: mean cosine of random pairs of different vectors of the sample (Ethayarajh 2019, "How Contextual
            are Contextualized Word Representations?").
        canary: the feature's figures in the manifest; None if it has none.
    """

    name: str
    family: str
    layer: int | None
    width: int
    dtype: str
    form: str
    num_vectors: int
    norm_edges: tuple[float, ...]
    norm_counts: tuple[int, ...]
    mean_norm: float
    spectrum: tuple[float, ...]
    effective_rank: float
    anisotropy: float
    canary: dict[str, Any] | None


def describe_vectors(
    column: Column,
    vectors: NDArray[np.float32] | None,
    components: PrincipalComponents | None,
    seed: int,
    canary: dict[str, Any] | None,
) -> VectorStatistics:
    """The statistics of a feature.

    Args:
        column: its definition.
        vectors: (N, width) float32, the sample; None for a form without statistics.
        components: of the sample; None for a feature of very many dimensions.
        seed: of the random pairs.
        canary: its figures in the manifest.
    """
    norms = np.zeros(0) if vectors is None else _norms(vectors)
    edges, counts = _histogram(norms)
    return VectorStatistics(
        name=column.name,
        family=column.feature,
        layer=column.layers[0] if len(column.layers) == 1 else None,
        width=column.width,
        dtype=column.dtype,
        form=column.form,
        num_vectors=len(norms),
        norm_edges=edges,
        norm_counts=counts,
        mean_norm=float(norms.mean()) if len(norms) else 0.0,
        spectrum=tuple(components.shares[:_MAX_COMPONENTS].tolist()) if components else (),
        effective_rank=components.effective_rank if components else 0.0,
        anisotropy=0.0 if vectors is None else mean_cosine(vectors, seed),
        canary=canary,
    )


def _norms(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N,) Euclidean norms in float64."""
    blocks = (vectors[start : start + _BLOCK_ROWS].astype(np.float64) for start in range(0, len(vectors), _BLOCK_ROWS))
    return np.concatenate([np.zeros(0), *(np.linalg.norm(block, axis=1) for block in blocks)])


def _histogram(norms: NDArray[np.float64]) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """(edges, counts) of 41 bins of equal width; the last bin has its upper edge."""
    if not len(norms):
        return (0.0, 1.0), (0,)
    low, high = float(norms.min()), float(norms.max())
    least = _MIN_SPREAD * max(abs(low), abs(high)) or 1.0
    if high - low < least:
        middle = (low + high) / 2
        low, high = max(0.0, middle - least / 2), middle + least / 2
    counts, edges = np.histogram(norms, _NORM_BINS, (low, high))
    return tuple(edges.tolist()), tuple(counts.tolist())


def random_pairs(num_vectors: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of 10,000 random pairs of different vectors; none of fewer than two vectors."""
    if num_vectors < 2:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    random = np.random.default_rng([seed, 2])
    one = random.integers(num_vectors, size=_PAIRS)
    return one, (one + random.integers(1, num_vectors, size=_PAIRS)) % num_vectors


def mean_cosine(vectors: NDArray[np.float32], seed: int) -> float:
    """The mean cosine of random pairs of (N, width) vectors; a zero vector has cosine 0 with all others."""
    one, other = random_pairs(len(vectors), seed)
    total = 0.0
    for start in range(0, len(one), _BLOCK_ROWS):
        pairs = slice(start, start + _BLOCK_ROWS)
        first, second = vectors[one[pairs]].astype(np.float64), vectors[other[pairs]].astype(np.float64)
        lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        products = np.einsum("nd,nd->n", first, second)
        total += float(np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0).sum())
    return total / len(one) if len(one) else 0.0
