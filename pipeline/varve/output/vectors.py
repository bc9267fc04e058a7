"""Decodes stored features: Arrow columns of a part → float32 vectors.

The inverse of `schema.py`, and the only reader of this format. One vector of `width` dimensions is stored as

- float32, float16: `width` values
- int8: `width` values, and a float32 scale in a second column; a dimension is value x scale
- binary: one bit per dimension, 8 in a byte, the first in the highest bit; bit 1 decodes to +1, bit 0 to -1

A row holds one vector, a list of vectors (one per window or token) or a flat list of attention weights.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.encoder.feature_plan import Column
from varve.output.schema import vector_length


def read_vectors(table: pa.Table, column: Column) -> NDArray[np.float32]:
    """Decode a feature column.

    Args:
        table: R rows with the column and, for int8, its scales. Null cells are skipped.
        column: definition of the feature.

    Returns:
        (N, width) float32, in the order of the rows; N = R if each row holds one vector, else the vectors of all rows.
        Attention weights of all rows as (1, N).
    """
    values = flatten(table[column.name])
    if column.form == "attentions":
        return values.astype(np.float32, copy=False).reshape(1, -1)
    stored = values.reshape(-1, vector_length(column))
    if column.dtype == "binary":
        return np.unpackbits(stored, axis=1, count=column.width).astype(np.float32) * 2 - 1
    vectors = stored.astype(np.float32, copy=False)
    return vectors if column.scale_name is None else vectors * read_scales(table, column)


def read_scales(table: pa.Table, column: Column) -> NDArray[np.float32]:
    """(N, 1) float32: the scales of the N vectors of an int8 column."""
    return flatten(table[column.scale_name])[:, None]


def flatten(cells: pa.Array | pa.ChunkedArray) -> NDArray:
    """(N,) innermost values of cells that are single values or nested lists; nulls are skipped."""
    values = cells.combine_chunks() if isinstance(cells, pa.ChunkedArray) else cells
    while isinstance(values, (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray)):
        values = values.flatten()
    return values.drop_null().to_numpy(zero_copy_only=False)
