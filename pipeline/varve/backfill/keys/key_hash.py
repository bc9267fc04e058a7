"""Keys in one form, and the 64-bit hashes by which their rows are distributed over buckets.

Knows nothing of tables or buckets. Invariants: a hash depends on the key alone, not on the machine, the process or the
version of a library; equal keys of the two tables have the same form, whatever the width of their integers or offsets.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from varve.errors import JobError

_WORD = 8  # bytes that are mixed at once
_EXPECTED = "expected integers of at most 64 bits with a sign, strings, binary values or decimals"


def plain_keys(column: pa.ChunkedArray | pa.Array, name: str) -> pa.Array:
    """(R,) the keys as int64, large_string, large_binary, fixed-size binary or decimal.

    Args:
        column: R keys.
        name: of the column, for the message.

    Raises:
        JobError: the column has another type.
    """
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    stored = whole.type
    if pa.types.is_integer(stored) and not pa.types.is_uint64(stored):
        return whole.cast(pa.int64())
    if pa.types.is_string(stored) or pa.types.is_large_string(stored) or pa.types.is_string_view(stored):
        return whole.cast(pa.large_string())
    if pa.types.is_binary(stored) or pa.types.is_large_binary(stored) or pa.types.is_binary_view(stored):
        return whole.cast(pa.large_binary())
    if pa.types.is_fixed_size_binary(stored) or pa.types.is_decimal128(stored):
        return whole
    msg = f"source.key: column {name!r} is of type {stored}: {_EXPECTED}. Choose another column"
    raise JobError(msg)


def sort_order(keys: pa.Array) -> pa.Array:
    """(R,) uint64: the places of the keys in ascending order; strings are ordered by their UTF-8."""
    return pc.sort_indices(keys)  # pyright: ignore[reportAttributeAccessIssue] (made at run time)


def hash_keys(keys: pa.Array) -> NDArray[np.uint64]:
    """(R,) the hash of each key.

    Args:
        keys: R keys as `plain_keys` returns them, without nulls.
    """
    if pa.types.is_int64(keys.type):
        return _mix(keys.to_numpy().view(np.uint64).copy())
    if pa.types.is_large_string(keys.type) or pa.types.is_large_binary(keys.type):
        _, offsets, content = keys.buffers()
        bounds = np.frombuffer(offsets, np.int64)[keys.offset : keys.offset + len(keys) + 1]
        return _hash_bytes(_bytes(content, int(bounds[0]), int(bounds[-1])), bounds[:-1] - bounds[0], np.diff(bounds))
    width = keys.type.byte_width
    starts = np.arange(len(keys), dtype=np.int64) * width
    content = _bytes(keys.buffers()[1], keys.offset * width, (keys.offset + len(keys)) * width)
    return _hash_bytes(content, starts, np.full(len(keys), width, np.int64))


def bucket_numbers(hashes: NDArray[np.uint64], num_buckets: int) -> NDArray[np.uint16]:
    """(R,) bucket of each key, from its upper 32 bits.

    Args:
        hashes: of R keys.
        num_buckets: at most 65,536.
    """
    shift = np.uint64(32)
    return (((hashes >> shift) * np.uint64(num_buckets)) >> shift).astype(np.uint16)


def _bytes(buffer: pa.Buffer | None, start: int, stop: int) -> NDArray[np.uint8]:
    """Bytes of a buffer, followed by a word of zeros, so that each of them begins a whole word."""
    content = np.zeros(stop - start + _WORD, np.uint8)
    if buffer is not None:
        content[: stop - start] = np.frombuffer(buffer, np.uint8)[start:stop]
    return content


def _hash_bytes(
    content: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """Mix the words of all rows, one word of each row at a time."""
    words = np.ndarray((len(content) - _WORD + 1,), "<u8", buffer=content, strides=(1,))  # begin at every byte
    hashes = _mix(lengths.astype(np.uint64))
    rows, first = np.flatnonzero(lengths), 0
    while len(rows):
        rest = lengths[rows] - first
        unused = np.uint64(_WORD) * (_WORD - np.minimum(rest, _WORD)).astype(np.uint64)  # bits of the next row's bytes
        word = (words[starts[rows] + first].astype(np.uint64) << unused) >> unused
        hashes[rows] = _mix(hashes[rows] ^ word)
        rows, first = rows[rest > _WORD], first + _WORD
    return hashes


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64, in place: each bit of the result depends on each bit of the value."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values
