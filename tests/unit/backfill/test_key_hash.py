"""Hashes of keys do not depend on how the keys are stored, and fill all buckets."""

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from varve.backfill.keys.key_hash import bucket_numbers, hash_keys, plain_keys
from varve.errors import JobError

STRINGS = ["", "a", "b", "ab", "ba", "12345678", "123456789", "é" * 40, "\x00", "\x00\x00"]

GOLDEN_INTEGERS = ["0", "5692161d100b05e5", "b4d055fcf2cbbd7b"]
GOLDEN_STRINGS = ["0", "9cc048bc4b53cee9", "15fe6cebc923f28"]


def hashes(keys: pa.Array) -> np.ndarray:
    return hash_keys(plain_keys(keys, "id"))


@pytest.mark.parametrize("kind", [pa.int8(), pa.int16(), pa.int32(), pa.uint8(), pa.uint32()])
def test_hash_of_an_integer_does_not_depend_on_its_width(kind):
    numbers = [0, 1, 2, 100]
    assert (hashes(pa.array(numbers, kind)) == hashes(pa.array(numbers, pa.int64()))).all()


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary()])
def test_hash_of_a_string_does_not_depend_on_its_storage(kind):
    assert (hashes(pa.array(STRINGS).cast(kind)) == hashes(pa.array(STRINGS))).all()


@pytest.mark.parametrize(
    "keys",
    [
        pa.array(range(100)),
        pa.array([f"{row}" * (row % 5) for row in range(100)]),
        pa.array([row.to_bytes(16, "big") for row in range(100)], pa.binary(16)),
        pa.array([Decimal(row) for row in range(100)], pa.decimal128(38, 0)),
    ],
    ids=["int64", "string", "fixed", "decimal"],
)
def test_hash_of_a_slice_is_that_of_its_rows(keys):
    assert (hashes(keys.slice(33, 20)) == hashes(keys)[33:53]).all()
    assert (hashes(pa.array(keys.to_pylist()[33:53], keys.type)) == hashes(keys)[33:53]).all()


def test_hashes_of_similar_keys_differ():
    assert len(set(hashes(pa.array(STRINGS)).tolist())) == len(STRINGS)
    assert len(set(hashes(pa.array(range(-50_000, 50_000))).tolist())) == 100_000


def test_hashes_are_the_same_in_all_versions():
    """Workers of another version write into the same buckets."""
    assert [f"{each:x}" for each in hashes(pa.array([0, 1, -1])).tolist()] == GOLDEN_INTEGERS
    assert [f"{each:x}" for each in hashes(pa.array(["", "doc-1", "https://example.org/1"])).tolist()] == GOLDEN_STRINGS


@pytest.mark.parametrize("keys", [pa.array(range(0, 8_000_000, 8)), pa.array([f"doc-{row}" for row in range(10**5)])])
def test_buckets_have_about_the_same_size(keys):
    sizes = np.bincount(bucket_numbers(hashes(keys), 16), minlength=16) * 16 / len(keys)
    assert 0.9 < sizes.min() <= sizes.max() < 1.1


@pytest.mark.parametrize("kind", [pa.float64(), pa.bool_(), pa.timestamp("us"), pa.uint64(), pa.list_(pa.int64())])
def test_keys_of_other_types_are_refused(kind):
    with pytest.raises(JobError, match=f"column 'id' is of type {kind}".replace("[", r"\[")):
        plain_keys(pa.array([], kind), "id")
