"""Damage in sparse and late columns, and in the vocabulary, is found by the checks of `varve verify`."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pytest

from tests.outputs import PROVENANCE, column
from varve.encoder.feature_plan import FeaturePlan
from varve.output.part_file import write_part
from varve.output.schema import output_schema
from varve.output.vocabulary import VOCABULARY_KEY, encode_vocabulary, hash_vocabulary, write_vocabulary
from varve.ranges import Range
from varve.storage.object_store import Storage
from varve.verification.part_check import check_part
from varve.verification.vocabulary_check import check_vocabulary

SPARSE = column("s", 10, pool="splade", form="sparse")
LATE = column("l", 2, pool="declared", form="late")
TOKENS = [f"token {index}" for index in range(10)]
GOOD = {
    "s_ids": [[0, 9], None, [], [3]],
    "s_weights": [[0.5, 2.0], None, [], [1.0]],
    "l": [[[1.0, 0.0]], None, [], [[0.5, 0.5], [0.0, 1.0]]],
    "l_input_ids": [[7], None, [], [8, 9]],
    "l_offsets": [[[0, 2]], None, [], [[0, 1], [2, 3]]],
}
CONTENT = encode_vocabulary(TOKENS)


def check(folder, changes: Mapping[str, list]) -> list[str]:
    """The failures of a part with these columns."""
    plan = FeaturePlan((SPARSE, LATE), 1, 1, special_tokens=False)
    schema = output_schema(plan, pa.schema([]), pairs=False, metadata=PROVENANCE)
    rows = {
        **GOOD, **changes, "num_tokens": [3, None, 2, 4], "truncated": [False, None, False, False],
        "error": [None, "worker died", None, None], "shard": [0] * 4, "row": range(4),
    }  # fmt: skip
    table = pa.table([pa.array(rows[name], schema.field(name).type) for name in schema.names], schema=schema)
    storage = Storage(str(folder))
    part = write_part(storage, Range(0, 0, 4), table, PROVENANCE["fingerprint"])
    found = check_part(storage, part, schema)
    assert not found.get("checksums")
    assert not found["rows"]
    return found["numbers"]


def test_part_with_sparse_and_late_columns_has_no_failures(tmp_path):
    assert check(tmp_path, {}) == []


@pytest.mark.parametrize(
    ("changes", "failure"),
    [
        ({"s_ids": [[0, 10], None, [], [3]]}, "s_ids: ids outside of the vocabulary of 10 tokens"),
        ({"s_ids": [[-1, 9], None, [], [3]]}, "s_ids: ids outside of the vocabulary of 10 tokens"),
        ({"s_ids": [[9, 0], None, [], [3]]}, "s_ids: the ids of a row do not ascend"),
        ({"s_ids": [[9, 9], None, [], [3]]}, "s_ids: the ids of a row do not ascend"),
        ({"s_ids": [[9], None, [], [3]]}, "s_weights: its lists have other lengths than those of s_ids"),
        ({"s_ids": [None, None, [], [3]]}, "s_ids: 1 rows without an error have no value"),
        ({"s_weights": [[0.5, np.nan], None, [], [1.0]]}, "s_weights: NaN or infinity"),
        ({"s_weights": [[0.5, 0.0], None, [], [1.0]]}, "s_weights: a weight is 0"),
        ({"l_input_ids": [[7], None, [], [8]]}, "l_input_ids: its lists have other lengths than those of l"),
        ({"l_offsets": [[], None, [], [[0, 1], [2, 3]]]}, "l_offsets: its lists have other lengths than those of l"),
        ({"l": [[[1.0, np.inf]], None, [], [[0.5, 0.5], [0.0, 1.0]]]}, "l: NaN or infinity"),
    ],
)
def test_damaged_list_is_found(tmp_path, changes, failure):
    assert any(found.endswith(failure) for found in check(tmp_path, changes))


def test_next_row_may_begin_with_a_lower_id(tmp_path):
    ids = [[8, 9], None, [0], [0, 3]]
    assert check(tmp_path, {"s_ids": ids, "s_weights": [[1.0, 1.0], None, [1.0], [1.0, 1.0]]}) == []


@pytest.fixture
def storage(tmp_path) -> Storage:
    return Storage(str(tmp_path))


def schema_with(recorded: str | None) -> pa.Schema:
    metadata = {**PROVENANCE, **({VOCABULARY_KEY: recorded} if recorded else {})}
    return output_schema(
        FeaturePlan((SPARSE,), 1, 1, special_tokens=False), pa.schema([]), pairs=False, metadata=metadata
    )


def test_vocabulary_of_the_parts_passes(storage):
    write_vocabulary(storage, CONTENT)
    checked = check_vocabulary(storage, schema_with(hash_vocabulary(CONTENT)), [LATE, SPARSE])
    assert checked is not None
    assert checked.passed


def test_output_without_sparse_columns_has_no_vocabulary(storage):
    assert check_vocabulary(storage, schema_with(None), [LATE]) is None


@pytest.mark.parametrize(
    ("content", "recorded", "failure"),
    [
        (None, hash_vocabulary(CONTENT), "is missing"),
        (b"{}", hash_vocabulary(CONTENT), "expected a JSON array of strings"),
        (CONTENT, None, "the parts were written with None"),
        (encode_vocabulary([*TOKENS[:9], "other"]), hash_vocabulary(CONTENT), "the parts were written with"),
        (encode_vocabulary(TOKENS[:9]), hash_vocabulary(encode_vocabulary(TOKENS[:9])), "has 9 tokens"),
    ],
)
def test_other_vocabulary_is_found(storage, content, recorded, failure):
    if content is not None:
        write_vocabulary(storage, content)
    checked = check_vocabulary(storage, schema_with(recorded), [SPARSE])
    assert checked is not None
    assert failure in checked.failures[0]
