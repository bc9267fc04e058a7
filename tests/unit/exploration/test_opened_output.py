"""What `varve.open` returns: columns, rows and neighbours, compared with the arrays that were written."""

import sys

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import varve
from tests.finished_runs import finish
from tests.outputs import column, write_output
from varve import Job, JobError

ROWS, ERRORS, SHARDS = 530, (3, 411), [410, 0, 120]
VALUES = np.random.default_rng(0).normal(size=(ROWS, 6)).astype(np.float32)
KEPT = {"id": list(range(ROWS)), "a '<b>' \u202e": [f"<script>{row}" for row in range(ROWS)]}


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    features = {column("cls", 6): VALUES, column("windowed", 6, form="windows"): VALUES}
    features[column("small", 6, dtype="int8")] = VALUES
    path = tmp_path_factory.mktemp("opened") / "out"
    return varve.open(write_output(path, features, KEPT, errors=ERRORS, shards=SHARDS))


def test_columns_are_tables_of_all_rows(output):
    table = output.to_arrow(["id", "cls", "error"])
    assert (table.column_names, len(output)) == (["id", "cls", "error"], ROWS)
    assert table["id"].to_pylist() == KEPT["id"]
    assert np.flatnonzero(table["error"].is_valid()).tolist() == list(ERRORS)
    assert output.to_arrow().column_names == output.schema.names
    frame = output.to_polars(["id", *list(KEPT)[1:]])
    assert isinstance(frame, pl.DataFrame)
    assert frame.to_dict(as_series=False) == KEPT


def test_unknown_column_is_refused_with_the_columns(output):
    for read in (output.to_arrow, output.to_polars, output.tables):
        with pytest.raises(JobError, match="has no column 'text'; it has: id, a '<b>'"):
            read(["id", "text"])
    with pytest.raises(JobError, match="'id' is one text: expected a list"):
        output.to_arrow("id")


def test_polars_that_is_not_installed_is_named(output, monkeypatch):
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(JobError, match="pip install polars"):
        output.to_polars(["id"])


def test_tensor_shares_the_values_of_the_array(output):
    tensor = output.to_torch("cls")
    good = np.delete(np.arange(ROWS), ERRORS)
    assert torch.equal(tensor[good], torch.from_numpy(VALUES[good]))
    assert torch.isnan(tensor[list(ERRORS)]).all()
    nested = output.to_torch("windowed")
    assert nested.size(0) == ROWS
    assert torch.equal(nested.values(), torch.from_numpy(VALUES[good]))


@pytest.mark.parametrize(("shard", "row", "number"), [(0, 0, 0), (0, 409, 409), (2, 119, 529)])
def test_row_has_its_values_and_decoded_vectors(output, shard, row, number):
    found = output.row(shard, row)
    assert {name: found[name] for name in KEPT} == {name: values[number] for name, values in KEPT.items()}
    assert (found["shard"], found["row"], found["error"]) == (shard, row, None)
    np.testing.assert_array_equal(found["cls"], VALUES[number])
    np.testing.assert_array_equal(found["windowed"], VALUES[number : number + 1])
    np.testing.assert_allclose(found["small"], VALUES[number], atol=np.abs(VALUES[number]).max() / 127)
    assert not [name for name in found if name.startswith("small_")]


def test_row_with_an_error_has_no_features(output):
    found = output.row(2, 1)
    assert (found["cls"], found["windowed"], found["small"], found["error"]) == (None, None, None, "worker died")


@pytest.mark.parametrize(
    ("shard", "row", "reason"),
    [(0, 410, "shard 0 has rows 0 to 409"), (3, 0, "shards are 0 to 2"), (0, -1, "no row -1")],
)
def test_row_that_does_not_exist_is_refused(output, shard, row, reason):
    with pytest.raises(JobError, match=reason):
        output.row(shard, row)
    with pytest.raises(JobError, match=reason):
        output.neighbours((shard, row), feature="cls")


def test_neighbours_of_a_row_are_those_of_plain_numpy_without_itself(output):
    unit = VALUES / np.linalg.norm(VALUES, axis=1, keepdims=True)
    scores = unit @ unit[500]
    scores[[500, *ERRORS]] = -np.inf
    best = np.argsort(-scores)[:7]
    found = output.neighbours((2, 90), 7, feature="cls", show=["id"])
    assert found.column_names == ["rank", "score", "position", "shard", "row", "id"]
    assert found["id"].to_pylist() == best.tolist()
    np.testing.assert_allclose(found["score"], scores[best], atol=1e-6)
    assert found["rank"].to_pylist() == list(range(1, 8))


@pytest.mark.parametrize(
    ("query", "options", "reason"),
    [
        ((2, 1), {"feature": "cls"}, "row 1 of shard 2 has no vector of cls"),
        ((0, 1), {"feature": "windowed"}, "several vectors .* Pass a text"),
        ((0, 1), {"feature": "cls", "k": 0}, "k: 0 is not allowed"),
        (7, {"feature": "cls"}, "7 is neither a text nor a pair"),
        ("", {"feature": "cls"}, "query 1 is empty"),
        ((0, 1), {"feature": "none"}, "feature 'none' is not there"),
    ],
)
def test_impossible_neighbours_are_refused(output, query, options, reason):
    with pytest.raises(JobError, match=reason):
        output.neighbours(query, **options)


def test_neighbours_of_a_text_are_those_of_a_search(minilm, tmp_path):
    texts = ["a red fox", "stock prices fell", "the fox is red", "shares lost value"]
    pq.write_table(pa.table({"text": texts}), tmp_path / "docs.parquet")
    job = {
        "source": {"dataset": "parquet", "data_files": f"{tmp_path}/docs.parquet", "text": "text", "keep": ["text"]},
        "model": {"name": minilm},
        "features": {"e": {"pool": "mean", "normalize": True}},
        "output": {"path": str(tmp_path / "run")},
    }  # fmt: skip
    finish(Job.parse(job))
    found = varve.open(str(tmp_path / "run")).neighbours("a fox of red colour", 2)
    assert sorted(found["text"].to_pylist()) == ["a red fox", "the fox is red"]
    assert found.equals(varve.search(str(tmp_path / "run"), "a fox of red colour", 2).drop_columns(["query"]))


def test_output_and_its_manifest_print_as_one_line(output):
    for shown in (repr(output), repr(output.manifest)):
        assert output.path in shown
        assert len(shown) < 500 + len(output.path)
        assert "\n" not in shown
