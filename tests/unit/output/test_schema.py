import json

import pyarrow as pa
import pytest

from tests.outputs import column
from varve.output.schema import METADATA_KEY, describe, feature_columns, parse_columns, read_metadata

GOOD = describe(column("cls_01", 8, layer=1, dtype="int8"))


def test_definition_of_a_column_is_read_back():
    assert parse_columns([json.loads(json.dumps(GOOD))]) == [column("cls_01", 8, layer=1, dtype="int8")]


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""}, {"name": None}, {"width": 0}, {"width": 10**18}, {"width": "many"}, {"dtype": "float8"},
        {"form": "sphere"}, {"layers": []}, {"layers": "all"}, {"layers": [None]}, {"normalize": {}}, {"pool": 3},
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
