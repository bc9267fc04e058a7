"""Token pooling of the late-interaction columns of a part, before it is written.

Knows a part's table and the declared settings; no models. Runs there because clustering needs a CPU for longer than a
GPU needs to encode. Invariant: rows stay rows, null rows stay null.
"""

from collections.abc import Mapping
from importlib.util import find_spec

import numpy as np
import pyarrow as pa

from varve.encoder.checkpoint.head import TokenPooling
from varve.encoder.feature_plan import Column
from varve.encoder.postprocessing import normalize, quantize
from varve.encoder.ragged import Ragged
from varve.encoder.token_pooling import pool_rows
from varve.errors import JobError
from varve.output.schema import feature_columns, vector_length
from varve.output.vectors import read_vector_lists


def check_token_pooling() -> None:
    """Check that the library that clusters is installed.

    Raises:
        JobError: scipy is missing.
    """
    if find_spec("scipy") is None:
        msg = (
            "token pooling needs scipy, here and on every node: run pip install '.[late]' in Varve's folder, or remove "
            "token_pooling"
        )
        raise JobError(msg)


def pool_tokens(table: pa.Table, poolings: Mapping[str, TokenPooling]) -> pa.Table:
    """Pool the tokens of each row.

    int8 and binary vectors are decoded, pooled, and quantized again.

    Args:
        table: rows of a part, with the metadata of its schema.
        poolings: column of the form "clusters", which holds one vector per token → settings.
    """
    if not poolings:
        return table
    columns = {column.name: column for column in feature_columns(table.schema)}
    for name, pooling in poolings.items():
        for stored, cells in _pool_column(table, columns[name], pooling).items():
            index = table.schema.get_field_index(stored)
            table = table.set_column(index, table.schema.field(index), cells)
    return table


def _pool_column(table: pa.Table, column: Column, pooling: TokenPooling) -> dict[str, pa.Array]:
    """Stored name → the pooled vectors and, for int8, their scales."""
    tokens = read_vector_lists(table, column)
    if column.dtype == "binary":  # the cosine distance is that of vectors of length 1
        tokens = Ragged(normalize(tokens.values), tokens.offsets)
    pooled = pool_rows(tokens, pooling)
    vectors, scales = quantize(pooled.values, column.dtype)
    types = {name: table.schema.field(name).type for name in column.stored_names}
    flat = pa.array(vectors.reshape(-1), types[column.name].value_type.value_type)
    children = {column.name: pa.FixedSizeListArray.from_arrays(flat, type=types[column.name].value_type)}
    assert vectors.shape[1] == vector_length(column)
    if scales is not None and column.scale_name:
        children[column.scale_name] = pa.array(scales)
    offsets, missing = pa.array(pooled.offsets.astype(np.int32)), table[column.name].combine_chunks().is_null()
    return {
        name: pa.ListArray.from_arrays(offsets, child, type=types[name], mask=missing)
        for name, child in children.items()
    }
