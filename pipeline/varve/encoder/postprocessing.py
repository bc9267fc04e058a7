"""From pooled vectors to stored values: combine layers, truncate dimensions, normalize, quantize. Pure numpy."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from varve.encoder.feature_plan import Column

Floats = NDArray[np.float32]


def finish(column: Column, layers: Sequence[Floats]) -> tuple[NDArray, NDArray[np.float32] | None]:
    """Compute the stored values of a column.

    Args:
        column: the column.
        layers: one (N, H) float32 array for each of the column's layers.

    Returns:
        (N, width) vectors in the column's dtype ((N, ceil(width / 8)) uint8 for binary), and for int8 the (N,) scales.
    """
    vectors = _combine(column.combine, layers)[:, : column.width]
    if column.normalize:
        vectors = normalize(vectors)
    return quantize(vectors, column.dtype)


def _combine(how: str | None, layers: Sequence[Floats]) -> Floats:
    match how:
        case "concat":
            return np.concatenate(layers, axis=1)
        case "sum":
            return np.stack(layers).sum(axis=0)
        case "mean":
            return np.stack(layers).mean(axis=0)
        case _:
            return layers[0]


def normalize(vectors: Floats) -> Floats:
    """Scale (N, D) vectors to unit Euclidean length; zero vectors stay zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def quantize(vectors: Floats, dtype: str) -> tuple[NDArray, NDArray[np.float32] | None]:
    """Convert (N, D) vectors to a stored dtype.

    int8 has one scale per vector: value = int8 * scale, scale = largest magnitude / 127. binary stores one sign bit per
    dimension (1 if positive), the first dimension in the highest bit of the first byte.
    """
    match dtype:
        case "int8":
            scales = np.abs(vectors).max(axis=1, initial=0.0) / np.float32(127)
            steps = np.divide(vectors, scales[:, None], out=np.zeros_like(vectors), where=scales[:, None] > 0)
            return np.rint(steps).astype(np.int8), scales.astype(np.float32)
        case "binary":
            return np.packbits(vectors > 0, axis=1), None
        case _:
            with np.errstate(over="ignore"):  # values beyond float16 become infinite, which fails the text later
                return np.ascontiguousarray(vectors, dtype=dtype), None
