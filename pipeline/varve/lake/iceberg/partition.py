"""Partition specifications of Iceberg tables, and values of partitions as JSON.

A value has its physical form: days for a date, microseconds for a timestamp, text for decimals and UUIDs, hexadecimal
digits for binary values. Fields with the transform `void` are left out. Knows nothing of files.
"""

import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

from pyiceberg.partitioning import PartitionField as IcebergField
from pyiceberg.partitioning import PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.transforms import VoidTransform, parse_transform
from pyiceberg.typedef import Record
from pyiceberg.types import BinaryType, DecimalType, FixedType, IcebergType, UUIDType

from varve.errors import JobError
from varve.lake.table import PartitionField

UNPARTITIONED = "[]"
_FIRST_FIELD_ID = 1000


def partition_fields(spec: PartitionSpec, schema: Schema, current: Schema) -> tuple[PartitionField, ...]:
    """The fields of a specification.

    Args:
        spec: of the table.
        schema: of the version that is read; columns have the names of this version.
        current: schema of the table; it has all columns of the specification.
    """
    return tuple(
        PartitionField(
            each.name,
            schema.find_column_name(each.source_id) or current.find_column_name(each.source_id) or "",
            str(each.transform),
        )
        for each in _live(spec)
    )


def make_spec(fields: Sequence[PartitionField], schema: Schema) -> PartitionSpec:
    """The specification of a new table."""
    return PartitionSpec(
        *(
            IcebergField(
                source_id=schema.find_field(each.column).field_id,
                field_id=_FIRST_FIELD_ID + index,
                transform=parse_transform(each.transform),
                name=each.name,
            )
            for index, each in enumerate(fields)
        )
    )


def partition_json(partition: Record, spec: PartitionSpec) -> str:
    """The values of a file's partition as JSON."""
    values = (partition[index] for index, each in enumerate(spec.fields) if not _is_void(each))
    return json.dumps([_to_json(value) for value in values], ensure_ascii=False)


def partition_record(text: str, spec: PartitionSpec, schema: Schema) -> Record:
    """The record of a partition.

    Args:
        text: JSON of the values of all fields but void ones.
        spec: of the table.
        schema: of the table.

    Raises:
        JobError: these are not values of the specification.
    """
    values = json.loads(text)
    if len(values) != len(_live(spec)):
        names = ", ".join(each.name for each in _live(spec)) or "none"
        msg = (
            f"a file has the partition {text}, but the table is partitioned by {names}: the source has files of an "
            "older partitioning: set output.partition: none, or rewrite the source's files"
        )
        raise JobError(msg)
    types = [each.field_type for each in spec.partition_type(schema).fields]
    left = iter(values)
    return Record(
        *(
            None if _is_void(each) else _from_json(next(left), kind)
            for each, kind in zip(spec.fields, types, strict=True)
        )
    )


def _live(spec: PartitionSpec) -> list[IcebergField]:
    return [each for each in spec.fields if not _is_void(each)]


def _is_void(field: IcebergField) -> bool:
    return isinstance(field.transform, VoidTransform)


def _to_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    return str(value) if isinstance(value, (Decimal, UUID)) else value


def _from_json(value: Any, kind: IcebergType) -> Any:
    if value is None:
        return None
    if isinstance(kind, (BinaryType, FixedType)):
        return bytes.fromhex(value)
    if isinstance(kind, DecimalType):
        return Decimal(value)
    return UUID(value) if isinstance(kind, UUIDType) else value
