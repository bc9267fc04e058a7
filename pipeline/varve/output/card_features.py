"""The types of an output's columns as the header of a dataset card spells them.

Knows nothing of cards. Invariant: `datasets` 3, 4 and 5 read the same types: lists are written as `sequence`, which the
newer versions still read, except lists of structs, which `sequence` would turn into structs of lists.
"""

from typing import Any

import pyarrow as pa


def card_features(schema: pa.Schema) -> list[dict[str, Any]] | None:
    """The entry `features` of a dataset card; None if `datasets` has no type for a column, and infers them all."""
    try:
        return [{"name": field.name, **_feature(field.type)} for field in schema]
    except ValueError:
        return None


def _feature(arrow_type: pa.DataType) -> dict[str, Any]:
    if pa.types.is_struct(arrow_type):
        return {"struct": [{"name": field.name, **_feature(field.type)} for field in arrow_type]}
    if pa.types.is_large_list(arrow_type):
        return {"large_list": _inner(arrow_type.value_type)}
    if pa.types.is_list(arrow_type) or pa.types.is_fixed_size_list(arrow_type):
        key = "list" if pa.types.is_struct(arrow_type.value_type) else "sequence"
        length = {"length": arrow_type.list_size} if pa.types.is_fixed_size_list(arrow_type) else {}
        return {key: _inner(arrow_type.value_type), **length}
    return {"dtype": _dtype(arrow_type)}


def _inner(arrow_type: pa.DataType) -> Any:
    """The type of the values of a list: a name alone, or a mapping."""
    inner = _feature(arrow_type)
    return inner["dtype"] if list(inner) == ["dtype"] else inner.get("struct", inner)


def _dtype(arrow_type: pa.DataType) -> str:
    """Raises ValueError if `datasets` has no name for the type."""
    from datasets import Features, Value  # noqa: PLC0415 (readers of outputs do not need it)

    feature = Features.from_arrow_schema(pa.schema([pa.field("value", arrow_type)]))["value"]
    if not isinstance(feature, Value):
        msg = f"{arrow_type} has no name in a dataset card"
        raise ValueError(msg)  # noqa: TRY004 (of a column, not of an argument)
    return feature.dtype
