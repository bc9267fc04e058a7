"""Token pooling of a part equals sentence-transformers' HierarchicalTokenPooling, text by text."""

import json
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling

from tests.outputs import column
from varve.encoder.checkpoint.head import TokenPooling
from varve.encoder.feature_plan import FeaturePlan
from varve.encoder.postprocessing import quantize
from varve.encoder.ragged import Columns, Ragged
from varve.encoder.token_pooling import cluster_tokens
from varve.errors import JobError
from varve.output.schema import METADATA_KEY, describe, feature_arrays
from varve.output.token_pooling import check_token_pooling, pool_tokens
from varve.output.vectors import read_vector_lists

WIDTH = 24
LENGTHS = (40, 0, 1, 2, 3, 7, 129)
RNG = np.random.default_rng(0)


def random_tokens(count: int) -> np.ndarray:
    """Unit vectors, some of them near to each other, as the tokens of a text are."""
    centres = RNG.normal(size=(5, WIDTH))[RNG.integers(0, 5, count)]
    vectors = (centres + RNG.normal(size=(count, WIDTH))).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


ROWS = [random_tokens(length) for length in LENGTHS]


def make_table(dtype="float32", missing=()) -> tuple[pa.Table, list[np.ndarray]]:
    """A table with a column of clusters that holds the tokens, and the decoded vectors of its rows."""
    definition = column("late", WIDTH, pool="declared", dtype=dtype, form="clusters")
    good = np.ones(len(ROWS), np.bool_)
    good[list(missing)] = False
    rows = [row for row, is_good in zip(ROWS, good, strict=True) if is_good]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    values, scales = quantize(np.concatenate(rows), dtype)
    columns: Columns = {"late": Ragged(values, offsets)}
    if scales is not None:
        columns["late_scale"] = Ragged(scales, offsets)
    plan = FeaturePlan((definition,), 1, 1, special_tokens=False)
    arrays = feature_arrays(plan, columns, good, pairs=False)
    metadata = {METADATA_KEY: json.dumps({"columns": [describe(definition)]})}
    table = pa.table(arrays, metadata=metadata)
    lists = read_vector_lists(table, definition)
    return table, [lists[row] for row in range(len(ROWS))]


def read_rows(table: pa.Table, dtype="float32") -> list[np.ndarray]:
    lists = read_vector_lists(table, column("late", WIDTH, pool="declared", dtype=dtype, form="clusters"))
    return [lists[row] for row in range(len(lists))]


def expected(rows: list[np.ndarray], pooling: TokenPooling) -> list[np.ndarray]:
    oracle = HierarchicalTokenPooling(
        pooling.factor, num_protected_tokens=pooling.protected, normalize_embeddings=pooling.normalize
    )
    return [oracle.pool_one(torch.from_numpy(row.copy())).numpy() for row in rows]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("protected", [0, 1, 3])
@pytest.mark.parametrize("factor", [1.0, 1.5, 2.0, 4.0, 1000.0])
def test_pooled_vectors_equal_those_of_sentence_transformers(factor, protected, normalize):
    pooling = TokenPooling(factor, protected, normalize)
    table, rows = make_table()
    for got, want in zip(read_rows(pool_tokens(table, {"late": pooling})), expected(rows, pooling), strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 5e-4), ("int8", 5e-3)])
def test_pooled_vectors_are_those_of_the_decoded_vectors(dtype, tolerance):
    pooling = TokenPooling(2.0, protected=1, normalize=True)
    table, rows = make_table(dtype)
    pooled = pool_tokens(table, {"late": pooling})
    assert pooled.schema.equals(table.schema)
    for got, want in zip(read_rows(pooled, dtype), expected(rows, pooling), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance)


def test_pooled_signs_are_those_of_the_means():
    pooling = TokenPooling(3.0, protected=1, normalize=False)
    table, rows = make_table("binary")
    for got, row in zip(read_rows(pool_tokens(table, {"late": pooling}), "binary"), rows, strict=True):
        labels = cluster_tokens(row / np.sqrt(np.float32(WIDTH)), pooling) if len(row) else np.zeros(0, np.int64)
        means = [row[labels == label].mean(axis=0) for label in range(labels.max(initial=-1) + 1)]
        np.testing.assert_array_equal(got > 0, np.reshape(means, (-1, WIDTH)) > 0)


def test_null_rows_stay_null_and_do_not_move_other_rows():
    pooling = TokenPooling(2.0, protected=1, normalize=True)
    table, _ = make_table(missing=(0, 5))
    pooled = pool_tokens(table, {"late": pooling})
    assert pooled["late"].is_null().to_pylist() == [True, False, False, False, False, True, False]
    whole = read_rows(pool_tokens(make_table()[0], {"late": pooling}))
    for row, vectors in enumerate(read_rows(pooled)):
        np.testing.assert_array_equal(vectors, whole[row] if row not in {0, 5} else np.zeros((0, WIDTH), np.float32))


def test_table_without_rows_and_chunked_tables_are_pooled():
    pooling = {"late": TokenPooling(2.0, protected=1, normalize=True)}
    table, _ = make_table()
    assert pool_tokens(table.slice(0, 0), pooling).num_rows == 0
    assert pool_tokens(table, {}) is table
    chunked = pa.concat_tables([table.slice(0, 3), table.slice(3)])
    assert pool_tokens(chunked, pooling).combine_chunks().equals(pool_tokens(table, pooling).combine_chunks())


def test_missing_scipy_is_refused_with_the_command(monkeypatch):
    check_token_pooling()
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(JobError, match=r"pip install '\.\[late\]'"):
        check_token_pooling()
