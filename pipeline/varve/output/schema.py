"""The Arrow schema of the output: types, metadata, and arrays made from the encoder's results without a copy.

Defines how features are stored; `vectors.py` decodes them. Invariants: plain types only (fixed-size lists and lists, no
extension types), so no reader needs Varve; a row that could not be encoded has null features and its reason in `error`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import TypeAdapter

from varve.encoder.feature_plan import SPAN_COLUMNS, Column, FeaturePlan
from varve.encoder.ragged import Columns, Ragged
from varve.output.json_text import parse_object
from varve.preprocessing.computed_columns import ComputedColumn

METADATA_KEY = b"varve"

_VALUES = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8(), "binary": pa.uint8()}
_FORMS = ("vector", "windows", "chunks", "tokens", "attentions", "sparse", "late", "clusters")
_IDS, _SPANS = pa.list_(pa.int32()), pa.list_(pa.list_(pa.int32(), 2))
_MAX_WIDTH = 2**31  # of a fixed-size list
_COLUMNS = TypeAdapter(list[Column])
_ROW_FIELDS = (
    pa.field("num_tokens", pa.int32()),
    pa.field("truncated", pa.bool_()),
    pa.field("error", pa.string()),
    pa.field("shard", pa.int32(), nullable=False),
    pa.field("row", pa.int64(), nullable=False),
)
ROW_TYPES = {field.name: field.type for field in _ROW_FIELDS}


def output_schema(
    plan: FeaturePlan,
    kept: pa.Schema,
    *,
    pairs: bool,
    computed: Sequence[ComputedColumn] = (),
    metadata: Mapping[str, Any] | None = None,
) -> pa.Schema:
    """Kept columns, feature columns, computed columns, row columns, in this order.

    Args:
        plan: the features.
        kept: source columns that are copied to the output.
        pairs: texts are sentence pairs, so `sequence_ids` gives the text of each token.
        computed: columns of the user's functions.
        metadata: stored as JSON under the key `varve`, with the definitions of the feature columns as "columns" and
            of the computed columns as "computed".
    """
    fields = [kept.field(name) for name in kept.names]
    fields += [pa.field(name, arrow_type) for name, arrow_type in feature_types(plan, pairs=pairs).items()]
    fields += [pa.field(column.name, column.type) for column in computed]
    described = {**(metadata or {}), "columns": [describe(column) for column in plan.columns]}
    if computed:
        described["computed"] = [_describe_computed(column) for column in computed]
    return pa.schema([*fields, *_ROW_FIELDS], metadata={METADATA_KEY: json.dumps(described, sort_keys=True)})


def describe(column: Column) -> dict[str, Any]:
    """The definition of a feature column as JSON."""
    return {name: getattr(column, name) for name in Column.__slots__} | {"layers": list(column.layers)}


def read_metadata(schema: pa.Schema) -> dict[str, Any]:
    """The metadata that `output_schema` stored in a schema.

    Raises:
        KeyError, ValueError: the schema is not one of Varve.
    """
    return parse_object((schema.metadata or {})[METADATA_KEY])


def feature_columns(schema: pa.Schema) -> list[Column]:
    """The feature columns of a stored schema, in the order of the output.

    Raises:
        KeyError, ValueError, TypeError: the schema is not one of Varve.
    """
    return parse_columns(read_metadata(schema)["columns"])


def parse_columns(content: Any) -> list[Column]:
    """Definitions of feature columns, made by `describe`, whoever wrote them.

    Raises:
        ValueError: a definition lacks a value, or a value is not one of a feature column: sparse weights, for example,
            are float32.
    """
    columns = _COLUMNS.validate_python(content)
    for column in columns:
        known = column.dtype in _VALUES and column.form in _FORMS
        known = known and (column.form != "sparse" or column.dtype == "float32")
        if not (known and column.name and 1 <= column.width < _MAX_WIDTH and column.layers):
            msg = f"{column.name!r} is not the definition of a feature column"
            raise ValueError(msg)
    return columns


def _describe_computed(column: ComputedColumn) -> dict[str, Any]:
    return {
        "name": column.name,
        "python": column.code.name,
        "type": column.type_name,
        "code_sha256": column.code.sha256,
    }


def vector_length(column: Column) -> int:
    """Number of stored values of one vector: its dimensions; for binary bytes of 8 dimensions each."""
    return -(-column.width // 8) if column.dtype == "binary" else column.width


def feature_types(plan: FeaturePlan, *, pairs: bool) -> dict[str, pa.DataType]:
    """Name → Arrow type of the feature columns; `pairs`: see `output_schema`."""
    types = {name: each for column in plan.columns for name, each in _column_types(column).items()}
    extra = {"input_ids": _IDS, "offsets": _SPANS, "sequence_ids": pa.list_(pa.int8())}
    extra |= dict.fromkeys(SPAN_COLUMNS.values(), _SPANS)
    return {name: types.get(name) or extra[name] for name in plan.names(pairs=pairs)}


def _column_types(column: Column) -> dict[str, pa.DataType]:
    """Stored name → Arrow type of one feature."""
    if column.form == "sparse":
        return dict(zip(column.stored_names, (_IDS, pa.list_(pa.float32())), strict=True))
    value = _VALUES[column.dtype]
    vector = pa.list_(value, vector_length(column))
    types = [{"vector": vector, "attentions": pa.large_list(value)}.get(column.form, pa.list_(vector))]
    if column.scale_name:
        types.append(pa.float32() if column.form == "vector" else pa.list_(pa.float32()))
    if column.form == "late":
        types += [_IDS, _SPANS]
    return dict(zip(column.stored_names, types, strict=True))


def feature_arrays(plan: FeaturePlan, columns: Columns, good: NDArray[np.bool_], *, pairs: bool) -> dict[str, pa.Array]:
    """Arrow arrays of R rows from the encoder's columns.

    Args:
        plan: the features.
        columns: of the rows that were encoded.
        good: (R,) whether a row was encoded; the other rows become null.
        pairs: see `output_schema`.
    """
    return {
        name: _array(columns[name], arrow_type, good) for name, arrow_type in feature_types(plan, pairs=pairs).items()
    }


def row_arrays(
    columns: Columns, good: NDArray[np.bool_], errors: pa.Array, *, shard: int, start: int
) -> dict[str, pa.Array]:
    """The columns num_tokens, truncated, error, shard and row; `start` is the first row."""
    rows = len(good)
    return {
        "num_tokens": _array(columns["num_tokens"], pa.int32(), good),
        "truncated": _array(columns["truncated"], pa.bool_(), good),
        "error": errors,
        "shard": pa.array(np.full(rows, shard, np.int32)),
        "row": pa.array(np.arange(start, start + rows, dtype=np.int64)),
    }


def _array(values: NDArray | Ragged, arrow_type: pa.DataType, good: NDArray[np.bool_]) -> pa.Array:
    """An Arrow array over the encoder's buffers, which are copied only if some rows were not encoded."""
    missing = None if good.all() else pa.array(~good)
    if isinstance(values, Ragged):
        return _list_array(values, arrow_type, good, missing)
    if missing is not None:
        padded = np.zeros((len(good), *values.shape[1:]), values.dtype)
        padded[good] = values
        values = padded
    if pa.types.is_fixed_size_list(arrow_type):
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=arrow_type, mask=missing)
    return pa.array(values, arrow_type, mask=None if missing is None else ~good)


def _list_array(
    values: Ragged, arrow_type: pa.DataType, good: NDArray[np.bool_], missing: pa.BooleanArray | None
) -> pa.Array:
    lengths = np.zeros(len(good), np.int64)
    lengths[good] = np.diff(values.offsets)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    child = _array(values.values, arrow_type.value_type, np.ones(len(values.values), np.bool_))
    if pa.types.is_large_list(arrow_type):
        return pa.LargeListArray.from_arrays(pa.array(offsets), child, type=arrow_type, mask=missing)
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), child, type=arrow_type, mask=missing)
