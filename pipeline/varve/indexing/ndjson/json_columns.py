"""Arrow columns as JSON texts, column by column: no Python object per value for strings, numbers, dates and vectors.

Knows nothing of documents. Invariants: each text is one JSON value without a line break; float32 values are written
with the fewest digits that read back as the same float32; nulls and floats that JSON cannot hold are `null`.
"""

import base64
import json
from collections.abc import Sequence
from datetime import date, datetime, time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from varve.encoder.ragged import Ragged

TEXT = pa.large_string()  # of a block: its texts may have more than 2 GB
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_CONTROL = r"[\x00-\x1f]"


def json_texts(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """(N,) JSON texts of N values of any type."""
    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(values, pa.DictionaryArray):
        values = values.dictionary_decode()
    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        texts = quote(values)
    elif pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_decimal(kind):
        texts = values.cast(TEXT)
    elif pa.types.is_floating(kind):
        texts = _call("if_else", _call("is_finite", values), values, None).cast(TEXT)
    elif pa.types.is_timestamp(kind):
        texts = quote(_iso_times(values))
    elif pa.types.is_date(kind):
        texts = quote(values.cast(pa.date32()).cast(TEXT))
    else:
        texts = pa.array([_dumps(value) for value in values.to_pylist()], TEXT)
    return texts.fill_null("null")


def quote(values: pa.Array) -> pa.Array:
    """(N,) JSON strings; a null stays null."""
    original = values.cast(TEXT)
    texts = original
    for character, escape in _ESCAPES.items():
        texts = _call("replace_substring", texts, pattern=character, replacement=escape)
    texts = join_texts(['"', texts, '"'])
    odd = _call("match_substring_regex", texts, pattern=_CONTROL).fill_null(fill_value=False)
    if odd.true_count:
        fixed = pa.array([_dumps(value) for value in original.filter(odd).to_pylist()], TEXT)
        texts = _call("replace_with_mask", texts, odd, fixed)
    return texts


def join_texts(pieces: Sequence[pa.Array | str]) -> pa.Array:
    """(N,) texts, each the concatenation of one text of every array and of the constants between them."""
    arguments = [pa.scalar(piece, TEXT) if isinstance(piece, str) else piece for piece in pieces]
    return _call("binary_join_element_wise", *arguments, pa.scalar("", TEXT))


def vector_texts(vectors: NDArray) -> pa.Array:
    """(N,) JSON arrays of (N, width) values."""
    width = vectors.shape[1]
    offsets = np.arange(0, vectors.size + 1, width, dtype=np.int64)
    values = vectors.reshape(-1)
    texts = pa.array(values).cast(TEXT)
    if len(zeros := np.flatnonzero((values == 0) & np.signbit(values))):  # -0 would be read as the integer 0
        mask = np.zeros(len(values), np.bool_)
        mask[zeros] = True
        texts = _call("if_else", pa.array(mask), pa.scalar("-0.0", TEXT), texts)
    return _array_texts(texts, offsets, "[", "]")


def weight_texts(names: pa.Array, weights: Ragged) -> pa.Array:
    """(N,) JSON objects, name → weight.

    Args:
        names: JSON strings, one for each weight.
        weights: of N objects.
    """
    entries = join_texts([names, ":", pa.array(weights.values).cast(TEXT)])
    return _array_texts(entries, weights.offsets, "{", "}")


def _array_texts(entries: pa.Array, offsets: NDArray[np.int64], opening: str, closing: str) -> pa.Array:
    lists = pa.LargeListArray.from_arrays(pa.array(offsets), entries)
    return join_texts([opening, _call("binary_join", lists, pa.scalar(",", TEXT)), closing])


def _iso_times(values: pa.Array) -> pa.Array:
    """ISO 8601, in UTC where the column has a time zone."""
    is_zoned = values.type.tz is not None
    utc = values.cast(pa.timestamp(values.type.unit, "UTC")) if is_zoned else values
    return _call("strftime", utc, format="%Y-%m-%dT%H:%M:%S" + ("Z" if is_zoned else "")).cast(TEXT)


def _dumps(value: Any) -> str | None:
    return None if value is None else json.dumps(_plain(value), ensure_ascii=False, default=str)


def _plain(value: Any) -> Any:
    """A value that JSON can hold: bytes as base64, times in ISO 8601, floats that are not finite as null."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _call(function: str, *arguments: Any, **options: Any) -> Any:
    return getattr(pc, function)(*arguments, **options)
