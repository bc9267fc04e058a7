"""Checks the types and ranges of the values of manifest.json, whoever wrote it.

Knows nothing of storage. Invariant: a manifest that passes can be used without further checks: sums fit 64 bits, rows
lie in their parts, and no value has another type than a run writes.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ConfigDict, ValidationError, create_model

from varve.output.part_table import PartTable

MAX_ROWS = 10**12 - 1  # the highest row that the name of a part can hold
_MAX_COUNT = 2**53
_OPTIONAL = ("shortest", "longest", "footer_sha256")
_COUNTS = ("counts", "error_reasons")


def check_fields(manifest: type, content: Mapping[str, Any]) -> None:
    """Check the types of all fields of a manifest except `parts`.

    Args:
        manifest: the dataclass.
        content: name → value.

    Raises:
        ValueError: a value has another type, or a count is negative.
    """
    types: dict[str, Any] = {field.name: (field.type, ...) for field in fields(manifest) if field.name in content}
    try:
        create_model("Manifest", __config__=ConfigDict(strict=True), **types).model_validate(dict(content))
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        msg = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise ValueError(msg) from e
    for name, value in content.items():
        if type(value) is int and not 0 <= value <= _MAX_COUNT:
            msg = f"{name}: {value} is not a count"
            raise ValueError(msg)
    _check_counts((json.dumps(content.get(name, {})) for name in _COUNTS), "counts")


def check_parts(parts: PartTable) -> None:
    """Check the values of all records.

    Raises:
        ValueError: a record lacks a value, or a value is outside its range.
    """
    columns = parts.columns
    for name in columns.column_names:
        if name not in _OPTIONAL and columns[name].null_count:
            msg = f"parts: {name} is missing in {columns[name].null_count} part(s)"
            raise ValueError(msg)
    for name in columns.column_names:
        if pa.types.is_integer(columns[name].type):
            limit = MAX_ROWS if name in {"start", "stop"} else _MAX_COUNT
            _require(_in_range(columns[name].to_numpy(), 0, limit), name)
    start, stop = columns["start"].to_numpy(), columns["stop"].to_numpy()
    _require(start <= stop, "start")
    _require(columns["data_bytes"].to_numpy() <= columns["file_bytes"].to_numpy(), "data_bytes")
    for name in ("shortest", "longest"):
        present = columns[name].is_valid().to_numpy()
        pairs = columns[name].drop_null().combine_chunks().flatten()
        _require(np.full(1, not pairs.null_count), name)
        rows, tokens = pairs.to_numpy(zero_copy_only=False).reshape(-1, 2).T
        _require((rows >= start[present]) & (rows < stop[present]) & _in_range(tokens, 0, _MAX_COUNT), name)
    for name in _COUNTS:
        if name in columns.column_names:
            _check_counts(columns[name].unique().to_pylist(), f"parts: {name}")


def _check_counts(texts: Iterable[str], name: str) -> None:
    """Check JSON objects of counts."""
    for text in texts:
        counts = json.loads(text)
        if not isinstance(counts, dict) or not all(type(n) is int and 0 <= n <= _MAX_COUNT for n in counts.values()):
            msg = f"{name}: expected an object of counts"
            raise ValueError(msg)


def _in_range(values: NDArray, low: int, high: int) -> NDArray[np.bool_]:
    return (values >= low) & (values <= high)


def _require(valid: NDArray[np.bool_], name: str) -> None:
    if not valid.all():
        msg = f"parts: {name} of part {int(np.flatnonzero(~valid)[0])} is outside its range"
        raise ValueError(msg)
