"""Stored features are decoded as numpy does by hand, for each dtype and each form of a row."""

import numpy as np
import pyarrow as pa
import pytest

from tests.outputs import column
from varve.encoder.feature_plan import FeaturePlan
from varve.output.schema import feature_columns, output_schema
from varve.output.vectors import flatten, read_scales, read_sparse, read_vector_lists, read_vectors

WIDTH = 10
RNG = np.random.default_rng(0)
FLOATS = RNG.normal(size=(6, WIDTH)).astype(np.float32)
INTS = RNG.integers(-127, 128, (6, WIDTH), np.int8)
SCALES = np.array([0.5, 0.25, 2, 1, 0.125, 4], np.float32)
BYTES = RNG.integers(0, 256, (6, 2), np.uint8)


def signs() -> np.ndarray:
    """±1 of each dimension: the bits of BYTES, highest first."""
    bits = [[(row[at // 8] >> (7 - at % 8)) & 1 for at in range(WIDTH)] for row in BYTES]
    return np.array(bits, np.float32) * 2 - 1


STORED = {"float32": FLOATS, "float16": FLOATS.astype(np.float16), "int8": INTS, "binary": BYTES}
DECODED = {
    "float32": FLOATS,
    "float16": FLOATS.astype(np.float16).astype(np.float32),
    "int8": INTS.astype(np.float32) * SCALES[:, None],
    "binary": signs(),
}


def vector_array(stored: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(stored.ravel()), stored.shape[1])


@pytest.mark.parametrize("dtype", STORED)
def test_one_vector_per_row(dtype):
    table = pa.table({"e": vector_array(STORED[dtype]), "e_scale": SCALES})
    vectors = read_vectors(table, column("e", WIDTH, dtype=dtype))
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, DECODED[dtype])


@pytest.mark.parametrize("form", ["windows", "chunks", "tokens", "late", "clusters"])
@pytest.mark.parametrize("dtype", STORED)
def test_vectors_of_lists_come_in_the_order_of_rows(dtype, form):
    starts = pa.array([0, 2, 2, 3, 6], pa.int32())
    lists = pa.ListArray.from_arrays(starts, vector_array(STORED[dtype]))
    table = pa.table({"e": lists, "e_scale": pa.ListArray.from_arrays(starts, pa.array(SCALES))})
    np.testing.assert_array_equal(read_vectors(table, column("e", WIDTH, dtype=dtype, form=form)), DECODED[dtype])


def test_attention_weights_are_one_flat_vector():
    weights = pa.array([[0.5, 0.5], [0.25] * 4], pa.large_list(pa.float16()))
    vectors = read_vectors(pa.table({"a": weights}), column("a", 1, dtype="float16", form="attentions"))
    np.testing.assert_array_equal(vectors, [[0.5, 0.5, 0.25, 0.25, 0.25, 0.25]])


@pytest.mark.parametrize("dtype", STORED)
def test_null_cells_and_rows_outside_a_slice_are_skipped(dtype):
    cells = vector_array(STORED[dtype]).to_pylist()
    table = pa.table(
        {
            "e": pa.array([cells[0], None, *cells[1:]], vector_array(STORED[dtype]).type),
            "e_scale": pa.array([SCALES[0], None, *SCALES[1:]], pa.float32()),
        }
    )
    np.testing.assert_array_equal(read_vectors(table.slice(1, 4), column("e", WIDTH, dtype=dtype)), DECODED[dtype][1:4])


def test_scales_are_a_column():
    table = pa.table({"e_scale": SCALES})
    np.testing.assert_array_equal(read_scales(table, column("e", WIDTH, dtype="int8")), SCALES[:, None])


def test_flatten_takes_single_values_and_several_chunks():
    np.testing.assert_array_equal(flatten(pa.array([1.0, 2.0])), [1, 2])
    np.testing.assert_array_equal(flatten(pa.chunked_array([[[1], [2, 3]], [[4]]])), [1, 2, 3, 4])


def test_definitions_of_columns_are_read_from_a_stored_schema():
    columns = (column("e", WIDTH, dtype="int8"), column("t", 4, pool="tokens", form="tokens", layer=3))
    schema = output_schema(FeaturePlan(columns, 3, 12, special_tokens=False), pa.schema([]), pairs=False)
    assert tuple(feature_columns(schema)) == columns


@pytest.mark.parametrize("dtype", STORED)
def test_lists_of_vectors_have_the_offsets_of_their_rows(dtype):
    starts = pa.array([0, 2, None, 2, 3, 6], pa.int32())
    lists = pa.ListArray.from_arrays(starts, vector_array(STORED[dtype]))
    table = pa.table({"e": lists, "e_scale": pa.ListArray.from_arrays(starts, pa.array(SCALES))})
    decoded = read_vector_lists(table.slice(1), column("e", WIDTH, dtype=dtype, form="late"))
    assert decoded.offsets.tolist() == [0, 0, 0, 1, 4]
    np.testing.assert_array_equal(decoded.values, DECODED[dtype][2:])


def test_sparse_vectors_are_read_row_by_row():
    table = pa.table(
        {
            "s_ids": pa.array([[1, 9], None, [], [0]], pa.list_(pa.int32())),
            "s_weights": pa.array([[0.5, 2.0], None, [], [1.5]], pa.list_(pa.float32())),
        }
    )
    ids, weights = read_sparse(table, column("s", WIDTH, form="sparse"))
    assert [ids[row].tolist() for row in range(4)] == [[1, 9], [], [], [0]]
    assert [weights[row].tolist() for row in range(4)] == [[0.5, 2.0], [], [], [1.5]]
    assert (ids.values.dtype, weights.values.dtype) == (np.int32, np.float32)
    again = read_sparse(pa.concat_tables([table.slice(0, 1), table.slice(3)]), column("s", WIDTH, form="sparse"))
    assert again[0].offsets.tolist() == [0, 2, 3]


def test_sparse_vectors_with_more_ids_than_weights_are_refused():
    table = pa.table({"s_ids": pa.array([[1, 2], [3]]), "s_weights": pa.array([[0.5], [1.0, 2.0]])})
    with pytest.raises(ValueError, match="not as many ids as weights"):
        read_sparse(table, column("s", WIDTH, form="sparse"))
