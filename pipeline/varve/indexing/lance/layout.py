"""The columns of a Lance dataset: what identifies a vector, the kept columns, and the vector."""

import numpy as np
import pyarrow as pa

from varve.encoder.ragged import Ragged
from varve.indexing.rows import ITEM, POSITION, ROW, SHARD, IndexRows
from varve.indexing.source import LATE, IndexSource

VECTOR = "vector"  # the column that LanceDB searches by default


def table_schema(source: IndexSource) -> pa.Schema:
    """Position, shard, row, item, the kept columns, and the vector; float16 values are stored as float16."""
    value = pa.float16() if source.column.dtype == "float16" else pa.float32()
    vector = pa.list_(value, source.width)
    item = [(ITEM, pa.int32())] if source.has_items else []
    return pa.schema(
        [
            *(pa.field(*each) for each in [(POSITION, pa.int64()), (SHARD, pa.int32()), (ROW, pa.int64()), *item]),
            *(source.output.schema.field(name).remove_metadata() for name in source.columns),
            pa.field(VECTOR, pa.list_(vector) if source.kind == LATE else vector),
        ]
    )


def table_of(rows: IndexRows, source: IndexSource) -> pa.Table:
    """The rows of one part; a text of late interaction has a list of vectors."""
    schema, vectors = table_schema(source), rows.vectors
    values = vectors.values if isinstance(vectors, Ragged) else rows.dense
    dtype = np.float16 if source.column.dtype == "float16" else np.float32
    lists = pa.FixedSizeListArray.from_arrays(pa.array(values.astype(dtype, copy=False).reshape(-1)), source.width)
    if isinstance(vectors, Ragged):
        lists = pa.ListArray.from_arrays(pa.array(vectors.offsets.astype(np.int32)), lists)
    return pa.table([*rows.ids.columns, lists], schema=schema)
