"""Decodes stored features: Arrow columns of a part → float32 vectors.

The inverse of `schema.py`, and the only reader of this format. One vector of `width` dimensions is stored as

- float32, float16: `width` values
- int8: `width` values, and a float32 scale in a second column; a dimension is value x scale
- binary: one bit per dimension, 8 in a byte, the first in the highest bit; bit 1 decodes to +1, bit 0 to -1

A row holds one vector, a list of vectors (one per window, chunk, token or cluster of tokens) or a flat list of
attention weights. A sparse vector is stored as two lists of equal length: the ids of its dimensions (int32, ascending)
in `NAME_ids`, their values (float32) in `NAME_weights`; all other dimensions are 0.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from varve.encoder.feature_plan import Column
from varve.encoder.ragged import Ragged
from varve.output.schema import vector_length


def read_vectors(table: pa.Table, column: Column) -> NDArray[np.float32]:
    """Decode a feature column.

    Args:
        table: R rows with the column and, for int8, its scales. Null cells are skipped.
        column: definition of the feature, of any form but sparse.

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


def read_vector_lists(table: pa.Table, column: Column) -> Ragged:
    """Decode a feature column whose rows hold lists of vectors: windows, chunks, tokens, late or clusters.

    Args:
        table: R rows with the column and, for int8, its scales.
        column: definition of the feature.

    Returns:
        (N, width) float32 vectors and the (R + 1,) offsets of the rows; a null row has no vectors.
    """
    return Ragged(read_vectors(table, column), list_offsets(table[column.name]))


def read_sparse(table: pa.Table, column: Column) -> tuple[Ragged, Ragged]:
    """Decode a sparse feature column.

    Args:
        table: R rows with the columns `column.stored_names`.
        column: definition of the feature.

    Returns:
        (int32 ids, float32 weights) of R vectors, with equal offsets; a null row has no entries.

    Raises:
        ValueError: a row has not as many ids as weights.
    """
    ids, weights = (table[name] for name in column.stored_names)
    offsets = list_offsets(ids)
    if not np.array_equal(offsets, list_offsets(weights)):
        msg = f"{column.name}: a row has not as many ids as weights"
        raise ValueError(msg)
    return Ragged(flatten(ids), offsets), Ragged(flatten(weights), offsets)


def list_offsets(cells: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
    """(R + 1,) where the entries of each of R lists start in `flatten(cells)`; a null list is empty."""
    lengths = pc.list_value_length(cells).fill_null(0)  # pyright: ignore[reportAttributeAccessIssue] (made at run time)
    lengths = lengths.to_numpy() if isinstance(lengths, pa.ChunkedArray) else lengths.to_numpy(zero_copy_only=False)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def read_scales(table: pa.Table, column: Column) -> NDArray[np.float32]:
    """(N, 1) float32: the scales of the N vectors of an int8 column."""
    return flatten(table[column.scale_name])[:, None]


def flatten(cells: pa.Array | pa.ChunkedArray) -> NDArray:
    """(N,) innermost values of cells that are single values or nested lists; nulls are skipped."""
    values = cells.combine_chunks() if isinstance(cells, pa.ChunkedArray) else cells
    while isinstance(values, (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray)):
        values = values.flatten()
    return values.drop_null().to_numpy(zero_copy_only=False)
