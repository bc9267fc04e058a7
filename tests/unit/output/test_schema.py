import json

import pyarrow as pa
import pytest

from tests.outputs import column
from varve.encoder.feature_plan import FeaturePlan
from varve.output.schema import (
    METADATA_KEY,
    describe,
    feature_columns,
    feature_types,
    parse_columns,
    read_metadata,
)

GOOD = describe(column("cls_01", 8, layer=1, dtype="int8"))


def test_definition_of_a_column_is_read_back():
    assert parse_columns([json.loads(json.dumps(GOOD))]) == [column("cls_01", 8, layer=1, dtype="int8")]


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""}, {"name": None}, {"width": 0}, {"width": 10**18}, {"width": "many"}, {"dtype": "float8"},
        {"form": "sphere"}, {"form": "sparse"}, {"layers": []}, {"layers": "all"}, {"layers": [None]},
        {"normalize": {}}, {"pool": 3},
    ],
)  # fmt: skip
def test_invalid_definition_of_a_column_is_rejected(changes):
    with pytest.raises(ValueError, match=r"not the definition|validation error"):
        parse_columns([{**GOOD, **changes}])


@pytest.mark.parametrize(
    "metadata", [None, b"", b"[]", b"[" * 10_000, b'{"columns": 1}', b'{"columns": [1]}', b'{"a": "\\ud800"}']
)
def test_schema_with_other_metadata_is_rejected(metadata):
    schema = pa.schema([("e", pa.int8())], metadata=metadata and {METADATA_KEY: metadata})
    with pytest.raises((KeyError, ValueError)):
        feature_columns(schema)
    if metadata and b"columns" not in metadata:
        with pytest.raises(ValueError, match=r"object|nested|Expecting|surrogates"):
            read_metadata(schema)


# As version 0.1.0 wrote them: a changed byte would change the schema of a run that is continued.
BEFORE = (
    '{"combine": null, "dtype": "int8", "form": "vector", "layers": [1], "name": "cls_01", "normalize": false, '
    '"pool": "cls", "width": 8}'
)


def test_definition_of_an_old_form_has_the_same_bytes():
    assert json.dumps(GOOD, sort_keys=True) == BEFORE


LIST = {
    "ids": pa.list_(pa.int32()),
    "weights": pa.list_(pa.float32()),
    "float16": pa.list_(pa.list_(pa.float16(), 10)),
    "int8": pa.list_(pa.list_(pa.int8(), 10)),
    "binary": pa.list_(pa.list_(pa.uint8(), 2)),
    "spans": pa.list_(pa.list_(pa.int32(), 2)),
}


@pytest.mark.parametrize(
    ("form", "dtype", "types"),
    [
        ("sparse", "float32", {"e_ids": "ids", "e_weights": "weights"}),
        ("late", "float16", {"e": "float16", "e_input_ids": "ids", "e_offsets": "spans"}),
        ("late", "int8", {"e": "int8", "e_scale": "weights", "e_input_ids": "ids", "e_offsets": "spans"}),
        ("clusters", "binary", {"e": "binary"}),
        ("clusters", "int8", {"e": "int8", "e_scale": "weights"}),
        ("chunks", "float16", {"e": "float16", "chunks": "spans"}),
        ("windows", "int8", {"e": "int8", "e_scale": "weights", "windows": "spans"}),
    ],
)
def test_lists_are_stored_as_plain_arrow_types(form, dtype, types):
    plan = FeaturePlan((column("e", 10, dtype=dtype, form=form),), 1, 1, special_tokens=False)
    assert parse_columns([describe(plan.columns[0])]) == list(plan.columns)
    assert feature_types(plan, pairs=False) == {name: LIST[kind] for name, kind in types.items()}
