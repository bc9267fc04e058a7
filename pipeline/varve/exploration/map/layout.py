"""Positions in two dimensions: fitted on a sample, then given to any vector.

UMAP (McInnes et al. 2018) is fitted on the sample by `umap-learn`. A further row gets the median, per coordinate, of
the positions of its five nearest rows of the sample: a mean lies between groups that UMAP has pulled apart (see
infra/decisions/0041-a-map-is-fitted-on-a-sample.md). PCA projects every row. Knows nothing of outputs. Invariant: with
the same library versions, equal samples and seeds give equal positions.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from varve.errors import JobError
from varve.exploration.map.sample_search import SampleSearch

_PLACED_BY = 5
LEAST_ROWS = 10  # for UMAP

Positions = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The positions of the sample, and how others are placed.

    Attributes:
        sample: (S, 2) float32.
        mean, components: (width,) and (width, 2) float32, of PCA; None: by the nearest rows of the sample.
    """

    sample: Positions
    mean: NDArray[np.float32] | None = None
    components: NDArray[np.float32] | None = None

    def place(self, vectors: NDArray[np.float32], nearest: NDArray[np.int64]) -> Positions:
        """(N, 2) positions of N vectors; `nearest`: (N, k) rows of the sample, the nearest first."""
        if self.components is not None and self.mean is not None:
            return ((vectors - self.mean) @ self.components).astype(np.float32, copy=False)
        return np.median(self.sample[nearest[:, :_PLACED_BY]], axis=1).astype(np.float32)


def fit_pca(vectors: NDArray[np.float32]) -> Layout:
    """The two directions with most variance, eigenvectors of the covariance; the largest entry of each is positive."""
    mean = vectors.mean(axis=0, dtype=np.float64)
    centred = vectors - mean
    components = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :2]
    if components.shape[1] < 2:
        components = np.pad(components, ((0, 0), (0, 1)))
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=0)[None], axis=0)
    components = (components * np.where(largest < 0, -1, 1)).astype(np.float32)
    return Layout((centred @ components).astype(np.float32), mean.astype(np.float32), components)


def fit_umap(search: SampleSearch, neighbours: int, seed: int) -> Layout:
    """Place the sample by UMAP.

    Args:
        search: in the sample.
        neighbours: of the graph, itself included.
        seed: of the layout; one thread computes it, so that it can be repeated.

    Raises:
        JobError: umap-learn is not installed, or the sample is too small.
    """
    if len(search.vectors) < LEAST_ROWS:
        msg = f"UMAP needs {LEAST_ROWS} rows with a vector, there are {len(search.vectors)}. Add --method pca"
        raise JobError(msg)
    try:
        import umap  # noqa: PLC0415 (optional, takes seconds)
    except ImportError as e:
        msg = "--method umap needs umap-learn: run pip install '.[map]' in Varve's folder, or add --method pca"
        raise JobError(msg) from e
    k = min(neighbours, len(search.vectors) - 1)
    rows, scores = _with_itself_first(*search.nearest(search.vectors, k))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a seed allows one thread, that the graph is not searched again
        fitted = umap.UMAP(
            n_neighbors=k, metric="cosine", random_state=seed, n_jobs=1, force_approximation_algorithm=True,
            precomputed_knn=(rows, np.maximum(1 - scores, 0)),
        ).fit_transform(search.vectors)  # fmt: skip
    return Layout(np.asarray(fitted, np.float32))


def _with_itself_first(
    rows: NDArray[np.int64], scores: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The neighbours of all rows of the sample, each row its own first neighbour, as UMAP expects."""
    own = np.arange(len(rows))[:, None]
    at = np.where((rows == own).any(axis=1), (rows == own).argmax(axis=1), rows.shape[1] - 1)
    keep = np.arange(rows.shape[1])[None] != at[:, None]
    others, of_others = rows[keep].reshape(len(rows), -1), scores[keep].reshape(len(rows), -1)
    return np.hstack([own, others]), np.hstack([np.ones((len(rows), 1), np.float32), of_others])
