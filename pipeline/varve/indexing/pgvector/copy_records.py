"""The records of a binary COPY, made from numpy and Arrow arrays, and vectors that COPY returns.

Format: a header; of each row the number of fields, and of each field its length and its bytes (length -1: NULL);
integers big-endian. Knows nothing of connections. Invariant: no Python object per row. Columns of fixed length are
written into one structured array; only text, bytes, nulls and sparse vectors need a second pass, which joins their
pieces row by row in Arrow.
"""

import struct
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from varve.indexing.pgvector.column_types import ColumnType, find_type
from varve.indexing.pgvector.vector_type import BIT, HALFVEC, SPARSEVEC, VectorType
from varve.indexing.rows import IndexRows, SparseVectors, take

HEADER = b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0)
TRAILER = struct.pack("!h", -1)
_CHUNK_BYTES = 2**19  # larger messages are read by the server as a whole before it works on them
_NULL = -1

# One piece of every row: (N, bytes) of a fixed length, or N values of any length, null or empty where there is nothing.
Piece = NDArray[np.uint8] | pa.Array


def copy_records(rows: IndexRows, vector_type: VectorType) -> Iterator[bytes | memoryview]:
    """The content of a COPY of the columns of `rows.ids` and the vectors, in blocks of about 512 kB.

    Args:
        rows: N vectors of one part.
        vector_type: how they are stored.
    """
    row_bytes = 64 + rows.ids.nbytes / max(len(rows), 1) + vector_type.value_bytes(_mean_nonzero(rows))
    step = max(1, int(_CHUNK_BYTES / row_bytes))
    yield HEADER
    for start in range(0, len(rows), step):
        some = slice(start, min(start + step, len(rows)))
        pieces = [_number_of_fields(rows.ids.num_columns + 1, some.stop - some.start)]
        for field, column in zip(rows.ids.schema, rows.ids.columns, strict=True):
            pieces += _column_pieces(find_type(field), column.slice(some.start, some.stop - some.start))
        yield _join([*pieces, *_vector_pieces(take(rows.vectors, some), vector_type)])
    yield TRAILER


def _mean_nonzero(rows: IndexRows) -> float:
    return len(rows.vectors.ids.values) / max(len(rows), 1) if isinstance(rows.vectors, SparseVectors) else 0.0


def _number_of_fields(count: int, rows: int) -> NDArray[np.uint8]:
    return _as_bytes(np.full(rows, count, ">i2"))


def _as_bytes(values: NDArray) -> NDArray[np.uint8]:
    """(N, item size) bytes of (N, ...) values."""
    return np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1)


def _column_pieces(kind: ColumnType, column: pa.ChunkedArray) -> list[Piece]:
    """The length and the value of each row of a kept column."""
    values = column.combine_chunks()
    if isinstance(values, pa.ChunkedArray):  # of no chunk
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], column.type)
    if kind.wire is None:
        content = kind.wire_bytes(values)
        lengths = pc.fill_null(pc.call_function("binary_length", [content]), _NULL).to_numpy(zero_copy_only=False)
        return [_as_bytes(lengths.astype(">i4")), content]
    content = _as_bytes(kind.wire_values(values))
    if not values.null_count:
        return [_lengths(len(values), content.shape[1]), content]
    valid = values.is_valid().to_numpy(zero_copy_only=False)
    lengths = np.where(valid, content.shape[1], _NULL)
    return [
        _as_bytes(lengths.astype(">i4")),
        pc.call_function("if_else", [pa.array(valid), _as_arrow(content), pa.scalar(None, pa.large_binary())]),
    ]


def _lengths(rows: int, length: int) -> NDArray[np.uint8]:
    return _as_bytes(np.full(rows, length, ">i4"))


def _vector_pieces(vectors: object, kind: VectorType) -> list[Piece]:
    """The length and the value of each vector, as the `recv` functions of pgvector and of bit read them."""
    if isinstance(vectors, SparseVectors):
        return _sparse_pieces(vectors, kind.width)
    assert isinstance(vectors, np.ndarray)
    rows = len(vectors)
    if kind.name == BIT:
        content, header = np.packbits(vectors > 0, axis=1), _lengths(rows, kind.width)
    else:
        content = _as_bytes(vectors.astype(">f2" if kind.name == HALFVEC else ">f4"))
        header = _as_bytes(np.tile(np.array([kind.width, 0], ">i2"), (rows, 1)))
    return [_lengths(rows, content.shape[1] + 4), header, content]


def _sparse_pieces(vectors: SparseVectors, width: int) -> list[Piece]:
    """Length, width, number of weights, 0; then the dimensions, counted from 0, and the weights, none of them zero."""
    kept = vectors.weights.values != 0
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])[vectors.ids.offsets]
    count = np.diff(offsets)
    header = np.stack([12 + 8 * count, np.full_like(count, width), count, np.zeros_like(count)], axis=1)
    ids, weights = vectors.ids.values[kept].astype(">i4"), vectors.weights.values[kept].astype(">f4")
    return [_as_bytes(header.astype(">i4")), _values_of_rows(ids, offsets), _values_of_rows(weights, offsets)]


def _values_of_rows(values: NDArray, offsets: NDArray[np.int64]) -> pa.Array:
    """The bytes of four-byte values, one array element per row."""
    buffers = [None, pa.py_buffer(np.ascontiguousarray(offsets * 4)), pa.py_buffer(values)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)


def _join(pieces: Sequence[Piece]) -> bytes | memoryview:
    """The pieces of row 0, then those of row 1, and so on."""
    columns: list[Piece] = []
    for piece in pieces:  # neighbours of fixed length become one
        if columns and isinstance(piece, np.ndarray) and isinstance(columns[-1], np.ndarray):
            columns[-1] = np.concatenate([columns[-1], piece], axis=1)
        else:
            columns.append(piece)
    if len(columns) == 1 and isinstance(columns[0], np.ndarray):
        return columns[0].tobytes()
    arrays = [_as_arrow(column) if isinstance(column, np.ndarray) else column for column in columns]
    separator = pa.scalar(b"", pa.large_binary())
    joined = pc.call_function("binary_join_element_wise", [*arrays, separator], pc.JoinOptions("replace", ""))
    offsets = np.frombuffer(joined.buffers()[1], np.int64)[joined.offset : joined.offset + len(joined) + 1]
    return memoryview(joined.buffers()[2])[int(offsets[0]) : int(offsets[-1])]


def _as_arrow(content: NDArray[np.uint8]) -> pa.Array:
    """(N, bytes) as N values."""
    rows, length = content.shape
    buffers = [
        None,
        pa.py_buffer(np.arange(rows + 1, dtype=np.int64) * length),
        pa.py_buffer(np.ascontiguousarray(content)),
    ]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), rows, buffers)


def read_vectors(content: bytes, width: int, name: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The vectors of a COPY of (position, embedding) that the server sent.

    Args:
        content: of the whole COPY.
        width: dimensions.
        name: vector, halfvec or bit.

    Returns:
        (N,) positions, and (N, width) float32; bits as -1 and +1.
    """
    assert name != SPARSEVEC
    head = [("fields", ">i2"), ("l0", ">i4"), ("position", ">i8"), ("l1", ">i4")]
    if name == BIT:
        record = np.dtype([*head, ("length", ">i4"), ("vector", "u1", (-(-width // 8),))])
    else:
        record = np.dtype(
            [*head, ("width", ">i2"), ("zero", ">i2"), ("vector", ">f2" if name == HALFVEC else ">f4", (width,))]
        )
    records = np.frombuffer(content[len(HEADER) : -len(TRAILER)], record)
    vectors = records["vector"]
    if name == BIT:
        vectors = np.unpackbits(vectors, axis=1, count=width).astype(np.float32) * 2 - 1
    return records["position"].astype(np.int64), vectors.astype(np.float32)
