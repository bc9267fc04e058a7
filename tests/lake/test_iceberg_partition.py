"""Partition values of any type survive JSON, in the order of the specification."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.transforms import IdentityTransform, VoidTransform
from pyiceberg.typedef import Record
from pyiceberg.types import (
    BinaryType,
    BooleanType,
    DateType,
    DecimalType,
    DoubleType,
    FixedType,
    LongType,
    NestedField,
    StringType,
    TimestamptzType,
    UUIDType,
)

from varve.errors import JobError
from varve.lake.iceberg.partition import partition_fields, partition_json, partition_record

VALUES = [
    (BooleanType(), st.booleans()),
    (LongType(), st.integers(-(2**63), 2**63 - 1)),
    (DoubleType(), st.floats(allow_nan=False)),
    (DateType(), st.integers(-(2**31), 2**31 - 1)),
    (TimestamptzType(), st.integers(-(2**63), 2**63 - 1)),
    (StringType(), st.text()),
    (BinaryType(), st.binary()),
    (FixedType(4), st.binary(min_size=4, max_size=4)),
    (UUIDType(), st.uuids()),
    (DecimalType(9, 2), st.integers(-(10**9), 10**9).map(lambda number: Decimal(number) / 100)),
]
SCHEMA = Schema(*(NestedField(index, f"c{index}", kind) for index, (kind, _) in enumerate(VALUES, 1)))
SPEC = PartitionSpec(
    *(PartitionField(index, 1000 + index, IdentityTransform(), f"c{index}") for index in SCHEMA.field_ids)
)


@given(st.tuples(*(st.none() | each for _, each in VALUES)))
def test_values_of_every_type_survive_json(values):
    text = partition_json(Record(*values), SPEC)
    assert partition_record(text, SPEC, SCHEMA) == Record(*values)


@given(st.tuples(*(st.none() | each for _, each in VALUES)), st.integers(0, len(VALUES) - 1), st.data())
def test_other_values_have_another_text(values, index, data):
    other = list(values)
    other[index] = data.draw(st.none() | VALUES[index][1])
    is_equal = Record(*values) == Record(*other)
    assert (partition_json(Record(*values), SPEC) == partition_json(Record(*other), SPEC)) == is_equal


def test_void_fields_are_left_out():
    spec = PartitionSpec(
        PartitionField(1, 1000, VoidTransform(), "c1"), PartitionField(2, 1001, IdentityTransform(), "c2")
    )
    assert [each.name for each in partition_fields(spec, SCHEMA, SCHEMA)] == ["c2"]
    assert partition_json(Record(None, 7), spec) == "[7]"
    assert partition_record("[7]", spec, SCHEMA) == Record(None, 7)


@pytest.mark.parametrize("text", ["[]", "[1, 2]"])
def test_another_number_of_values_is_refused(text):
    spec = PartitionSpec(PartitionField(2, 1001, IdentityTransform(), "c2"))
    with pytest.raises(JobError, match=r"c2.*output\.partition: none"):
        partition_record(text, spec, SCHEMA)
