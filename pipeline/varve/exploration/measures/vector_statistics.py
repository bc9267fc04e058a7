"""Statistics of the vectors of one feature, from a sample.

Knows nothing of parts and pages. Invariant: all sums are in float64, so that figures of a sample are those of plain
numpy.
"""

from dataclasses import dataclass
from typing import Any


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
        spectrum: shares of the variance of the first (at most 64) principal components.
        effective_rank: exp of the entropy of the singular values of the centred sample, divided by their sum (Roy and
            Vetterli 2007, "The effective rank").
        anisotropy: mean cosine of random pairs of rows (Ethayarajh 2019).
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
