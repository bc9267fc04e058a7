import json

import pyarrow as pa
import pyarrow.parquet as pq

from tests.outputs import column, write_output
from tests.probes import WIDTH, problem, train
from varve.config.job import Job
from varve.output.manifest import JOB_NAME
from varve.planning.resolve import make_plan


def test_words_are_a_baseline_and_texts_in_two_splits_are_reported(output):
    _, target = problem()
    texts = [f"{('red', 'green', 'blue')[label]} thing" for label in target]
    study = train(output(text=texts), features=("cls_00",), text="text")
    words = next(result for result in study.results if result.name == "bag of words")
    assert words.test.metrics["accuracy"].value == 1
    assert any("also occurs in the training split" in note for note in study.notes)


def test_texts_come_from_the_source_even_if_the_job_s_functions_are_gone(tiny, tmp_path):
    inputs, target = problem()
    (tmp_path / "docs").mkdir()
    pq.write_table(pa.table({"text": [f"{'abc'[label]} thing" for label in target]}), tmp_path / "docs/0.parquet")
    (tmp_path / "code").mkdir()
    code = tmp_path / "code/my_lengths.py"
    code.write_text("def length(rows): return [1] * len(rows)")
    job = {
        "source": {"dataset": str(tmp_path / "docs"), "text": "text"},
        "model": {"name": tiny("bert")},
        "features": {"cls": {"pool": "cls"}, "length": {"python": "my_lengths:length", "type": "int32"}},
        "output": {"path": str(tmp_path / "run")},
    }
    plan = make_plan(Job.parse(job).in_folder(str(code.parent)), device="cpu")
    write_output(tmp_path / "run", {column("cls", WIDTH): inputs}, {"label": target.tolist()})
    (tmp_path / "run" / JOB_NAME).write_text(json.dumps(plan.to_json()))
    code.unlink()
    study = train(str(tmp_path / "run"), text=None)
    assert not study.absent
    assert "bag of words" in {result.name for result in study.results}
