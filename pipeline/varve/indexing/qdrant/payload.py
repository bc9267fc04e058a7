"""The payload and the id of a point: a row of `IndexRows.ids` as JSON, and back.

Invariant: a row that was written as JSON is read as the same Arrow values; types without such a form are refused.
"""

import uuid
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from varve.indexing.rows import ITEM, POSITION, ROW, SHARD

Payload = dict[str, Any]


def is_supported(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type have a form in JSON that `read_payloads` converts back."""
    if _is_time(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_boolean(kind):
        return True
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return is_supported(kind.value_type) and not _is_time(kind.value_type)
    return (pa.types.is_integer(kind) and kind != pa.uint64()) or kind in {pa.float32(), pa.float64(), pa.null()}


def write_payloads(ids: pa.Table) -> list[Payload]:
    """The payload of each row; times are ISO 8601."""
    columns = [column.cast(pa.string()) if _is_time(column.type) else column for column in ids.columns]
    return pa.table(columns, names=ids.column_names).to_pylist()


def read_payloads(payloads: Sequence[Payload], schema: pa.Schema) -> pa.Table:
    """The rows of payloads, in their order; a value that is absent is null."""
    arrays = []
    for field in schema:
        values = [payload.get(field.name) for payload in payloads]
        is_time = _is_time(field.type)
        arrays.append(pa.array(values, pa.string()).cast(field.type) if is_time else pa.array(values, field.type))
    return pa.table(arrays, schema=schema)


def point_ids(ids: pa.Table, key: str | None) -> list[str]:
    """The id of the point of each row: UUID 5 of its name in the URL namespace.

    The name is the value of the key, or SHARD/ROW; where a row has several vectors, /ITEM follows.
    """
    if key:
        names = [str(value) for value in ids[key].to_pylist()]
    else:
        pairs = zip(ids[SHARD].to_pylist(), ids[ROW].to_pylist(), strict=True)
        names = [f"{shard}/{row}" for shard, row in pairs]
    if ITEM in ids.column_names:
        names = [f"{name}/{item}" for name, item in zip(names, ids[ITEM].to_pylist(), strict=True)]
    return [str(uuid.uuid5(uuid.NAMESPACE_URL, name)) for name in names]


def ids_schema(kept: Sequence[pa.Field], *, has_items: bool) -> pa.Schema:
    """The schema of `IndexRows.ids`."""
    item = [(ITEM, pa.int32())] if has_items else []
    own = [(POSITION, pa.int64()), (SHARD, pa.int32()), (ROW, pa.int64()), *item]
    return pa.schema([*(pa.field(*each) for each in own), *kept])


def _is_time(kind: pa.DataType) -> bool:
    return pa.types.is_timestamp(kind) or pa.types.is_date(kind)
