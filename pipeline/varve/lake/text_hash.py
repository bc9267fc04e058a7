"""128-bit hashes of texts, by which a run decides whether a row has changed.

The hash of a row is the first 16 bytes of the SHA-256 of its text columns, each as its length in bytes (8 bytes, little
endian; 2^64 - 1 for null) and its UTF-8. So ("ab", "c") and ("a", "bc") differ, as do null and "". This is version h1;
another scheme needs another version, which is part of the identity of a feature set.
"""

from collections.abc import Sequence
from hashlib import sha256
from itertools import pairwise

import numpy as np
import pyarrow as pa

from varve.config.source import TEXT_HASH

__all__ = ["HASH_BYTES", "HASH_TYPE", "HASH_VERSION", "TEXT_HASH", "hash_texts"]

HASH_VERSION = "h1"
HASH_BYTES = 16
HASH_TYPE = pa.binary(HASH_BYTES)
_NULL = (2**64 - 1).to_bytes(8, "little")


def hash_texts(columns: Sequence[pa.ChunkedArray | pa.Array]) -> pa.Array:
    """(R,) binary(16): the hash of each row.

    Args:
        columns: the text columns of R rows, one or two.
    """
    framed = [_frame(column) for column in columns]
    if not framed:
        return pa.array([], HASH_TYPE)
    rows = framed[0] if len(framed) == 1 else map(b"".join, zip(*framed, strict=True))
    digests = b"".join([sha256(row).digest()[:HASH_BYTES] for row in rows])
    return pa.Array.from_buffers(HASH_TYPE, len(digests) // HASH_BYTES, [None, pa.py_buffer(digests)])


def _frame(column: pa.ChunkedArray | pa.Array) -> list[bytes]:
    """Each text as bytes, after its length."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    values = whole.cast(pa.large_binary())
    offsets = np.frombuffer(values.buffers()[1], np.int64)[values.offset : values.offset + len(values) + 1]
    lengths = np.diff(offsets).astype("<u8").tobytes()
    content = memoryview(values.buffers()[2] or b"")
    bounds = offsets.tolist()
    rows = [lengths[8 * row : 8 * row + 8] + content[start:stop] for row, (start, stop) in enumerate(pairwise(bounds))]
    if values.null_count:
        for row in np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False)):
            rows[row] = _NULL
    return rows
