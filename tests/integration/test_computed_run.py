"""Columns of the user's Python functions, in whole runs."""

import json

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import yaml

from varve import Job, JobError, RunError
from varve.output.schema import METADATA_KEY
from varve.planning.saved_plan import CodePermission
from varve.verification.verify import verify

CODE = """
import pyarrow as pa
from my_words import words

def overlap(rows):
    return [_overlap(*pair) for pair in zip(*(rows[name].to_pylist() for name in ("premise", "hypothesis")))]

def _overlap(premise, hypothesis):
    if premise == "no overlap":
        raise ValueError(f"nothing to compare: {premise}")
    both = words(premise) & words(hypothesis)
    return len(both) / len(words(premise) | words(hypothesis))

def rank(rows):
    return list(range(len(rows)))
"""


@pytest.fixture
def pairs(tmp_path):
    premises: list[str | None] = [f"a man eats {row % 7} red apples" for row in range(250)]
    hypotheses: list[str | None] = ["someone eats red apples"] * 250
    premises[3], premises[120], hypotheses[230] = None, "no overlap", ""
    (tmp_path / "docs").mkdir()
    table = pa.table({"premise": premises, "hypothesis": hypotheses, "label": [row % 3 for row in range(250)]})
    pq.write_table(table, tmp_path / "docs/0.parquet")
    return tmp_path / "docs"


@pytest.fixture
def load(job, pairs, tmp_path):
    """A job of sentence pairs, loaded from a file next to its functions."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/my_features.py").write_text(CODE)
    (tmp_path / "code/my_words.py").write_text("def words(text): return set(text.split())")

    def make(features, *settings, **sections) -> Job:
        functions = {name: {"python": f"my_features:{name}", "type": kind} for name, kind in features.items()}
        given = job(pairs, text=["premise", "hypothesis"], keep=["label"], **sections).model_dump(mode="json")
        content = {**given, "features": {"e": {"pool": "mean"}, **functions}}
        (tmp_path / "code/job.yaml").write_text(yaml.safe_dump(content))
        return Job.load(str(tmp_path / "code/job.yaml"), settings)

    return make


def read(path) -> pa.Table:
    return ds.dataset(path / "data").to_table().sort_by("row")


def test_computed_columns_are_written_checked_and_bound_to_their_code(load, run, tmp_path):
    with pytest.raises(JobError, match="column 'label' has the name of an output column"):
        run(load({"overlap": "float32", "label": "int64"}))
    assert not (tmp_path / "out").exists()
    manifest = run(load({"overlap": "float32"}))
    table = read(tmp_path / "out")
    assert table.column_names == ["label", "e", "overlap", "num_tokens", "truncated", "error", "shard", "row"]
    assert table["overlap"].type == pa.float32()
    assert table["overlap"][0].as_py() == pytest.approx(3 / 7)
    errors = {row: reason for row, reason in enumerate(table["error"].to_pylist()) if reason}
    assert errors == {
        3: "null text in premise",
        120: "overlap: ValueError: nothing to compare: no overlap (my_features.py, line 10)",
    }
    assert [row for row, value in enumerate(table["overlap"].to_pylist()) if value is None] == [3, 120]
    assert manifest.canary["computed"]["overlap"]["relative"] == 0
    assert manifest.stages["compute"]["work_s"] >= 0
    footer = json.loads(pq.read_schema(next((tmp_path / "out/data").iterdir())).metadata[METADATA_KEY])
    assert [(c["name"], c["python"], c["type"]) for c in footer["computed"]] == [
        ("overlap", "my_features:overlap", "float32")
    ]
    permission = CodePermission(str(tmp_path / "code"))
    checks = verify(str(tmp_path / "out"), permission=permission)
    assert all(check.passed and not check.skipped for check in checks)
    assert run(load({"overlap": "float32"})) == manifest

    (tmp_path / "code/my_words.py").write_text("def words(text): return set(text.lower().split())")
    with pytest.raises(JobError, match=r"Changed:\n  features\.overlap\.code: \"[0-9a-f]{64}\" → \"[0-9a-f]{64}\"\n"):
        run(load({"overlap": "float32"}))
    failures = {check.name: check.failures for check in verify(str(tmp_path / "out"), permission=permission)}
    assert "features.overlap.code" in failures["canary"][0]


def test_function_that_depends_on_other_rows_prevents_publishing(load, run, tmp_path):
    with pytest.raises(RunError, match=r"rank of shard 0, row \d+ is \d+; when my_features:rank"):
        run(load({"rank": "int32"}))
    assert not (tmp_path / "out/_varve/manifest.json").exists()


def test_late_failure_of_a_function_names_the_feature(load, run, pairs, tmp_path):
    code = tmp_path / "code/my_features.py"
    job = load({"rank": "int32"})
    code.write_text("def rank(rows): return [0] * (len(rows) if rows['label'][0].as_py() == 0 else 1)")
    with pytest.raises(RunError, match=r"features\.rank: my_features:rank returned 1 values for \d+ rows, expected"):
        run(job)
    assert not (tmp_path / "out/_varve/manifest.json").exists()


def test_function_that_fails_on_all_rows_is_rejected_before_writing(load, run, tmp_path):
    job = load({"overlap": "float32"})
    (tmp_path / "code/my_features.py").write_text("def overlap(rows): return rows['premis']")
    with pytest.raises(JobError, match=r"my_features:overlap fails on each of the first 64 rows\. overlap: KeyError"):
        run(job)
    assert not (tmp_path / "out").exists()
