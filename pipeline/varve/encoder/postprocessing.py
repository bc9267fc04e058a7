"""From pooled vectors to what is stored: layers combined, dimensions cut, normalised, quantised. Pure numpy."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from varve.encoder.feature_plan import Column

Floats = NDArray[np.float32]


def finish(column: Column, layers: Sequence[Floats]) -> tuple[NDArray, NDArray[np.float32] | None]:
    """Bring the vectors of a column's layers into its stored form.

    Args:
        column: how.
        layers: one (N, H) float32 array for each layer of the column.

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
    """To unit Euclidean length; a vector of zeros stays one."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def quantize(vectors: Floats, dtype: str) -> tuple[NDArray, NDArray[np.float32] | None]:
    """Store (N, D) vectors as `dtype`.

    int8 keeps a scale for each vector: value = int8 * scale, scale = largest magnitude / 127. binary keeps the signs,
    one bit for each dimension (1 where positive), the first dimension in the highest bit of the first byte.
    """
    match dtype:
        case "int8":
            scales = np.abs(vectors).max(axis=1, initial=0.0) / np.float32(127)
            steps = np.divide(vectors, scales[:, None], out=np.zeros_like(vectors), where=scales[:, None] > 0)
            return np.rint(steps).astype(np.int8), scales.astype(np.float32)
        case "binary":
            return np.packbits(vectors > 0, axis=1), None
        case _:
            with np.errstate(over="ignore"):  # infinity in float16, for which the text gets an error
                return np.ascontiguousarray(vectors, dtype=dtype), None
