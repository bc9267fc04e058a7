"""Several feature sets of the same rows are read as one output."""

import doctest
import pickle

import numpy as np
import pyarrow as pa
import pytest

import varve
from tests.outputs import column, write_output
from varve import JobError, RunError
from varve.output import feature_sets
from varve.output.feature_sets import list_sets
from varve.storage.object_store import Storage

ROWS, SHARDS = 530, [410, 0, 120]
MEAN, CLS = column("mean", 6), column("cls", 4)
KEPT = {"doc_id": [f"d{row}" for row in range(ROWS)], "title": [f"t{row}" for row in range(ROWS)]}


def vectors(width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(ROWS, width)).astype(np.float32)


FIRST, SECOND = vectors(6, 1), vectors(4, 2)


def write(path, features, kept=KEPT, errors=(), **changes) -> str:
    options = {"rows_per_part": 100, "shards": SHARDS, "errors": errors, **changes}
    return write_output(path, features, kept, **options)


@pytest.fixture
def path(tmp_path) -> str:
    """Two sets; rows 3 and 5 failed in the first one, 5 and 411 in the second."""
    path = write(tmp_path / "out", {MEAN: FIRST}, errors=(3, 5))
    write(tmp_path / "out/sets/cls", {CLS: SECOND}, {"title": KEPT["title"]}, (5, 411), model="another", **PRINT)
    return path


PRINT = {"fingerprint": "e" * 64}


def whole(output, names) -> pa.Table:
    return pa.concat_tables([table for _, table in output.tables(names)])


def test_columns_of_all_sets_are_one_output(path):
    output = feature_sets.open(path)
    assert list(output.features) == ["mean", "cls"]
    assert output.kept_columns == ["doc_id", "title"]
    assert output.schema.names == ["doc_id", "title", "mean", "num_tokens", "truncated", "error", "shard", "row", "cls"]
    assert (output.metadata["model"], output.manifest.fingerprint, output.path) == ("a-model", "f" * 64, path)
    table = whole(output, ["cls", "row", "mean", "doc_id", "title"])
    assert table.column_names == ["cls", "row", "mean", "doc_id", "title"]
    assert (table["doc_id"].to_pylist(), table["title"].to_pylist()) == (KEPT["doc_id"], KEPT["title"])
    for name, values, failed in (("mean", FIRST, [3, 5]), ("cls", SECOND, [5, 411])):
        assert np.flatnonzero(table[name].is_null()).tolist() == failed
        good = np.delete(np.arange(ROWS), failed)
        assert np.array_equal(np.stack(table[name].drop_null().to_numpy()), values[good])


def test_row_with_an_error_in_any_set_has_an_error(path):
    errors = whole(feature_sets.open(path), ["error"])["error"]
    assert np.flatnonzero(errors.is_valid()).tolist() == [3, 5, 411]


def test_errors_of_sets_that_are_not_read_do_not_count(path):
    for names, failed in ((["mean"], [3, 5]), (["cls"], [5, 411]), (["mean", "cls"], [3, 5, 411])):
        errors = whole(feature_sets.open(path).only(names), ["error", *names])["error"]
        assert np.flatnonzero(errors.is_valid()).tolist() == failed


@pytest.mark.parametrize("batch_rows", [1, 7, 64, 1000])
def test_batches_are_the_rows_of_a_part(path, batch_rows):
    output, names = feature_sets.open(path), ["cls", "error", "title", "mean", "row"]
    for part in output.manifest.parts:
        batches = list(output.batches(part, names, batch_rows))
        assert all(0 < len(batch) <= batch_rows for batch in batches)
        expected = output.read(part, names)
        assert pa.concat_tables([expected.slice(0, 0), *batches]).equals(expected)


def test_output_led_by_a_feature_has_the_record_of_its_set(path):
    output = feature_sets.open(path).led_by("cls")
    assert (output.manifest.fingerprint, output.metadata["model"]) == ("e" * 64, "another")
    assert (output.storage.uri, output.path) == (f"{path}/sets/cls", path)
    assert {column["name"] for column in output.metadata["columns"]} == set(output.features) == {"mean", "cls"}
    assert output.read(output.manifest.parts[0], ["doc_id"])["doc_id"].to_pylist() == KEPT["doc_id"][:100]
    assert output.led_by("mean").manifest.fingerprint == "f" * 64
    assert pickle.loads(pickle.dumps(output)).manifest.fingerprint == "e" * 64


def test_spans_are_those_of_the_set_that_leads(tmp_path):
    """Both sets have a column with the spans of windows; each describes the windows of its own set."""
    kinds = [column(name, 2, form="windows") for name in ("first", "second")]
    path = write(tmp_path / "out", {kinds[0]: vectors(2, 3)})
    write(tmp_path / "out/sets/b", {kinds[1]: vectors(2, 4)}, **PRINT)
    output = feature_sets.open(path)
    assert output.schema.names.count("windows") == 1
    for name, seed in (("first", 3), ("second", 4)):
        led = output.led_by(name)
        table = led.read(led.manifest.parts[0], [name, "windows"])
        assert np.array_equal(np.stack([cell[0] for cell in table[name].to_pylist()]), vectors(2, seed)[:100])
        assert led.storage.uri == path + {"first": "", "second": "/sets/b"}[name]


def test_set_alone_is_an_output(path):
    output = feature_sets.open(f"{path}/sets/cls")
    assert (list(output.features), output.kept_columns) == (["cls"], ["title"])


def test_set_that_has_not_finished_is_not_seen(path):
    Storage(path).create("sets/next/_varve/job.json", b"{}")
    Storage(path).create("sets/no-set/notes.txt", b"")
    assert list(feature_sets.open(path).features) == ["mean", "cls"]
    assert list_sets(Storage(path)) == ["cls", "next"]


def test_output_without_a_finished_first_set_is_refused(tmp_path):
    write(tmp_path / "out/sets/cls", {CLS: SECOND})
    with pytest.raises(JobError, match="holds no output of Varve"):
        feature_sets.open(str(tmp_path / "out"))


@pytest.mark.parametrize("changes", [{"shards": [400, 0, 130]}, {"rows_per_part": 50}])
def test_set_of_other_rows_is_refused_and_named(path, changes):
    write(f"{path}/sets/other", {column("max", 4): SECOND}, **PRINT, **changes)
    with pytest.raises(RunError, match=r"sets/other does not have the rows of .*/out, .* run its job again"):
        feature_sets.open(path)


@pytest.mark.parametrize(
    ("features", "kept", "name"),
    [
        ({column("cls", 3): vectors(3, 5)}, {"doc_id": KEPT["doc_id"]}, "cls"),
        ({column("title", 3): vectors(3, 5)}, {"doc_id": KEPT["doc_id"]}, "title"),
        ({column("max", 3): vectors(3, 5)}, {"mean": KEPT["doc_id"]}, "mean"),
    ],
)
def test_column_with_two_meanings_is_refused_and_named(path, features, kept, name):
    write(f"{path}/sets/other", features, kept, **PRINT)
    with pytest.raises(RunError, match=f"sets/other both have the column {name!r}"):
        feature_sets.open(path)


def test_example_of_the_docstring_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    embedding, title = column("embedding", 4), {"title": list("abcd")}
    write_output("features", {embedding: SECOND[:4]}, title)
    write_output("features/sets/cls", {CLS: SECOND[:4]}, title)
    (example,) = doctest.DocTestFinder().find(varve.open, "open", globs={"varve": varve})
    assert doctest.DocTestRunner().run(example) == doctest.TestResults(failed=0, attempted=4)


def test_sets_in_an_object_store_are_joined(container):
    path = f"{container('moto')}/some/run"
    write(path, {MEAN: FIRST})
    write(f"{path}/sets/cls", {CLS: SECOND}, **PRINT)
    table = whole(feature_sets.open(path), ["cls", "mean"])
    assert np.array_equal(np.stack(table["cls"].to_numpy()), SECOND)
    assert np.array_equal(np.stack(table["mean"].to_numpy()), FIRST)
