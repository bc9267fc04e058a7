"""The kinds of index of a Lance dataset: exact, IVF_SQ, IVF_RQ, IVF_PQ, IVF_HNSW_SQ.

Knows nothing of datasets. Invariant: the name of a kind and the size of the dataset are all that is needed to build it.
"""

from math import ceil, isqrt
from typing import Any

import numpy as np

from varve.errors import JobError
from varve.indexing.source import LATE, IndexSource
from varve.indexing.target import Kind

EXACT = "exact"
NAMES = ("IVF_SQ", "IVF_RQ", "IVF_PQ", "IVF_HNSW_SQ")
# One bit per dimension finds what eight bits do after it is refined. PQ needs a long training, HNSW memory.
_AUTO = ("IVF_SQ", "IVF_RQ", "IVF_HNSW_SQ")
_MAX_EXACT = 20_000  # vectors that are compared in milliseconds
_ROWS_PER_SEGMENT = 2**20
_ROWS_PER_CENTROID = 256  # that Lance trains a centroid with
_SEARCHES = (
    (4, 2),
    (8, 4),
    (16, 8),
    (32, 8),
    (64, 16),
    (128, 32),
    (256, 64),
)  # (nprobes, refine_factor): k times this number are compared exactly


def kinds_of(source: IndexSource, asked: str) -> list[Kind]:
    """The kinds that may be built of a feature, or the one that is asked for.

    Raises:
        JobError: the asked one does not exist, or does not fit the feature.
    """
    if asked not in {"auto", EXACT, *NAMES}:
        msg = f"kind {asked!r} does not exist in Lance: expected auto, exact, {', '.join(NAMES)}"
        raise JobError(msg)
    if source.kind == LATE:
        # Lance's index of multi-vectors finds candidates per token: half of the neighbours are lost.
        if asked not in {"auto", EXACT}:
            msg = f"kind {asked!r} is not for {source.column.name}, a late feature: Lance compares it exactly; use auto"
            raise JobError(msg)
        return [Kind(EXACT, _vector_bytes(source) * _tokens_per_text(source))]
    if asked == "IVF_RQ" and source.width % 8:
        msg = f"kind IVF_RQ is not for {source.column.name}: its {source.width} dimensions are not a multiple of 8"
        raise JobError(msg)
    automatic = (
        (EXACT,) if source.num_vectors < _MAX_EXACT else [n for n in _AUTO if n != "IVF_RQ" or not source.width % 8]
    )
    return [_kind(name, source) for name in (automatic if asked == "auto" else (asked,))]


def _kind(name: str, source: IndexSource) -> Kind:
    width = source.width
    if name == EXACT:
        return Kind(EXACT, _vector_bytes(source))
    codes = {
        "IVF_SQ": width + 8,
        "IVF_RQ": width / 8 + 24,
        "IVF_PQ": width / subvector_width(width) + 8,
        "IVF_HNSW_SQ": width + 184,
    }
    centroids = num_partitions(rows_per_segment(source))
    settings = tuple({"nprobes": min(n, centroids), "refine_factor": r} for n, r in _SEARCHES)
    return Kind(name, codes[name] + 4 * width * centroids / rows_per_segment(source), settings)


def _vector_bytes(source: IndexSource) -> float:
    return source.width * (2 if source.column.dtype == "float16" else 4)


def _tokens_per_text(source: IndexSource) -> float:
    """The mean of one part."""
    part = int(source.part_of(source.sample_positions(1, seed=0))[0])
    vectors = source.read(part, ()).vectors
    return len(vectors.values) / len(vectors)  # pyright: ignore[reportAttributeAccessIssue]


def subvector_width(width: int) -> int:
    """Dimensions of a vector that one byte of IVF_PQ represents."""
    return next(size for size in (8, 4, 2, 1) if width % size == 0)


def rows_per_segment(source: IndexSource) -> int:
    """Number of vectors of one segment of the index; segments are built in parallel and searched together."""
    return ceil(source.num_vectors / num_segments(source))


def num_segments(source: IndexSource) -> int:
    """Number of segments; each has at least one part that has vectors."""
    num_filled = int(np.count_nonzero(np.diff(source.starts)))
    return max(1, min(ceil(source.num_vectors / _ROWS_PER_SEGMENT), num_filled))


def num_partitions(rows: int) -> int:
    """Number of centroids of a segment."""
    return max(1, min(isqrt(rows), rows // _ROWS_PER_CENTROID))


def build_options(name: str, width: int) -> dict[str, Any]:
    """Arguments of Lance for a kind."""
    if name == "IVF_PQ":
        return {"num_sub_vectors": width // subvector_width(width)}
    return {"num_bits": 1} if name == "IVF_RQ" else {}
