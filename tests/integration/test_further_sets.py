"""A further feature set of the rows of a finished run: its values, its refusals, and the commands that read both."""

import hashlib
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import varve
from tests.finished_runs import finish
from varve import Job, JobError
from varve.cli.main import run_command
from varve.output.dataset_card import CARD_NAME
from varve.output.run_output import Output
from varve.planning.saved_plan import prepare, save_plan
from varve.storage.object_store import Storage
from varve.verification.verify import verify

ROWS, PART = 90, 25
WORDS = ("river", "stone", "cloud", "letter", "market", "winter", "garden", "copper")


def write_docs(folder: Path, *, rows: int = ROWS) -> Path:
    folder.mkdir()
    for shard, numbers in enumerate((range(rows - 30), range(rows - 30, rows))):
        texts = [f"The {WORDS[row % 4]} and the {WORDS[(row * 5) % 8]} of number {row}" for row in numbers]
        table = {"text": texts, "title": [f"t{row}" for row in numbers], "topic": [WORDS[row % 4] for row in numbers]}
        pq.write_table(pa.table(table), folder / f"{shard}.parquet")
    return folder


def make_job(docs: Path, path: Path, model: str, features: dict, *, keep=("title",), **output) -> Job:
    return Job.parse(
        {
            "source": {"dataset": str(docs), "text": "text", "keep": list(keep)},
            "model": {"name": model, "max_tokens": 32},
            "features": features,
            "output": {"path": str(path), **output},
        }
    )


MEAN, CLS = {"mean": {"pool": "mean", "normalize": True}}, {"cls": {"pool": "cls", "layers": [1, 2]}}


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and "sets" not in path.parts]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


class Sets:
    """Two sets in one output, and the same two jobs run on their own."""

    def __init__(self, folder: Path, model: str) -> None:
        self.docs, self.model, self.path = write_docs(folder / "docs"), model, folder / "out"
        self.first = make_job(self.docs, self.path, model, MEAN, keep=["title", "topic"], rows_per_part=PART)
        self.further = make_job(self.docs, self.path, model, CLS, set="layers")
        finish(self.first)
        self.before = hashes(self.path)
        self.manifest = finish(self.further)
        self.alone = make_job(self.docs, folder / "alone", model, CLS, rows_per_part=PART)
        finish(self.alone)

    def job(self, **changes) -> Job:
        return make_job(self.docs, self.path, self.model, **{"features": CLS, "set": "next", **changes})


@pytest.fixture(scope="module")
def sets(tmp_path_factory, tiny) -> Sets:
    return Sets(tmp_path_factory.mktemp("sets"), tiny("bert"))


def plan(job: Job):
    return prepare(job, Storage(job.output.root), device="cpu")


def read(path: Path | str, names: list[str]) -> pa.Table:
    return pa.concat_tables([table for _, table in varve.open(str(path)).tables(names)])


def test_values_are_those_of_two_separate_runs(sets):
    names = ["cls_01", "cls_02", "title", "shard", "row", "num_tokens"]
    assert read(sets.path, names).equals(read(sets.alone.output.path, names))
    assert varve.open(str(sets.path)).features.keys() == {"mean", "cls_01", "cls_02"}
    assert read(sets.path, ["mean"]).num_rows == ROWS


def test_nothing_of_the_first_set_changes(sets):
    assert hashes(sets.path) == sets.before


def test_parts_are_those_of_the_first_set(sets):
    assert sets.manifest.resolved["rows_per_part"] == PART
    assert sets.manifest.path == f"{sets.path}/sets/layers"
    names = [
        sorted(path.name for path in (folder / "data").iterdir()) for folder in (sets.path, sets.path / "sets/layers")
    ]
    assert names[0] == names[1]


@pytest.mark.parametrize("rows", ["auto", PART])
def test_same_job_is_resumed_with_the_saved_plan(sets, rows):
    again = plan(sets.job(set="layers", rows_per_part=rows))
    assert again.fingerprint == sets.manifest.fingerprint


def test_another_job_in_a_set_is_refused(sets):
    with pytest.raises(JobError, match=r"sets/layers belongs to another job. Changed:\n  features.cls.layers"):
        plan(sets.job(set="layers", features={"cls": {"pool": "cls", "layers": [0]}}))


def test_each_set_is_verified(sets):
    for path in (sets.path, sets.path / "sets/layers"):
        checks = verify(str(path), deep=True)
        assert [check for check in checks if not check.passed or check.skipped] == []


def test_other_number_of_rows_per_part_is_refused(sets):
    with pytest.raises(JobError, match=rf"output.rows_per_part: 30 .* have {PART} rows. Set auto"):
        plan(sets.job(rows_per_part=30, features={"new": {"pool": "max"}}))


def test_source_with_other_rows_is_refused_with_the_changes(sets, tmp_path):
    other = make_job(
        write_docs(tmp_path / "docs", rows=100), sets.path, sets.model, {"new": {"pool": "max"}}, set="next"
    )
    with pytest.raises(
        JobError, match=r"(?s)does not read the rows of the first .* Changed:\n  source file 0.parquet: "
    ):
        plan(other)
    assert not (sets.path / "sets/next").exists()


def test_text_and_kept_columns_may_be_others_than_those_of_the_first_set(sets):
    job = make_job(sets.docs, sets.path, sets.model, {"new": {"pool": "max"}}, keep=["text"], set="next")
    assert plan(job).schema.names[0] == "text"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": MEAN}, r"/out has a column 'mean' already"),
        ({"features": {"cls_01": {"pool": "max"}}}, r"/out/sets/layers has a column 'cls_01' already"),
        ({"features": {"title": {"pool": "max"}}, "keep": ()}, r"/out has a column 'title' already"),
    ],
)
def test_column_of_another_set_is_refused(sets, changes, message):
    with pytest.raises(JobError, match=message):
        plan(sets.job(**changes))


def test_feature_of_a_set_that_has_not_finished_is_refused(sets, tmp_path):
    path = tmp_path / "out"
    finish(make_job(sets.docs, path, sets.model, MEAN, rows_per_part=PART))
    begun = make_job(sets.docs, path, sets.model, CLS, set="begun")
    save_plan(plan(begun), Storage(begun.output.root))
    for features in (CLS, {"cls": {"pool": "max"}}):
        with pytest.raises(JobError, match=r"sets/begun has a column 'cls' already"):
            plan(make_job(sets.docs, path, sets.model, features, set="next"))


@pytest.mark.parametrize("begin", [False, True])
def test_set_needs_a_finished_first_one(sets, tmp_path, begin):
    path = tmp_path / "out"
    if begin:
        Storage(str(path)).create("_varve/job.json", b"{}")
    with pytest.raises(JobError, match=r"needs a finished first one in output.path: .* Run the job of the first set"):
        plan(make_job(sets.docs, path, sets.model, CLS, set="layers"))


def run_json(capsys, *argv) -> dict:
    code = run_command([*map(str, argv), "--json"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return json.loads(printed.out)


def test_status_lists_the_further_sets(sets, capsys):
    status = run_json(capsys, "status", sets.path)
    assert {name: (one["state"], one["rows"]) for name, one in status["sets"].items()} == {"layers": ("complete", ROWS)}
    assert run_json(capsys, "status", sets.path / "sets/layers")["state"] == "complete"
    run_command(["status", str(sets.path)])
    assert f"  set      layers: complete, {ROWS} rows\n" in capsys.readouterr().out


def test_probe_and_predictions_use_features_of_both_sets(sets, capsys, tmp_path):
    for name, features in (("one", "cls_02"), ("both", "mean+cls_02")):
        argv = ("--label", "topic", "--features", features, "--text", "none", "--output", tmp_path / name)
        content = run_json(capsys, "probe", sets.path, *argv)
        assert content["best"] == features
        assert run_json(capsys, "predict", tmp_path / name, sets.path, "--name", name)["num_rows"] == ROWS
    saved = json.loads((tmp_path / "both/model/model.json").read_text())["run"]
    first = varve.open(str(sets.path)).manifest.fingerprint
    assert (saved["fingerprint"], saved["further"]["cls_02"]["fingerprint"]) == (first, sets.manifest.fingerprint)
    assert (
        json.loads((tmp_path / "one/model/model.json").read_text())["run"]["fingerprint"] == sets.manifest.fingerprint
    )
    with pytest.raises(JobError, match="cls_02: missing"):
        varve.Probe.load(tmp_path / "both").check_run(Output.open(str(sets.path)))


def test_index_and_search_use_the_feature_of_a_further_set(sets, tmp_path):
    to = f"npy:{tmp_path / 'index'}"
    record = varve.index(str(sets.path), to, feature="cls_02", keep=["topic"])
    source = record.request.source
    assert (source["path"], source["fingerprint"]) == (str(sets.path), sets.manifest.fingerprint)
    assert varve.index(str(sets.path), to, feature="cls_02", keep=["topic"]).created_at == record.created_at
    query = "The river and the stone of number 0"
    found = varve.search(str(tmp_path / "index"), query, k=3)
    exact = varve.search(str(sets.path), query, k=3, feature="cls_02", show=["topic"])
    assert found.equals(exact)
    alone = varve.search(sets.alone.output.path, query, k=3, feature="cls_02", show=[])
    assert exact.drop_columns(["topic"]).equals(alone)
    fused = varve.search(str(sets.path), query, k=3, feature="mean", hybrid="bm25:title", show=["title", "topic"])
    assert len(fused) == 3


def test_run_on_ray_writes_the_set_once_and_resumes_it(sets, run, tmp_path):
    path = Path(shutil.copytree(sets.path, tmp_path / "out"))
    further = make_job(sets.docs, path, sets.model, {"max": {"pool": "max"}}, set="max")
    manifest = run(further)
    assert manifest.path == f"{path}/sets/max"
    assert run(further).sha256 == manifest.sha256
    assert list(varve.open(str(path)).features) == ["mean", "cls_01", "cls_02", "max"]
    after = hashes(path)
    del after[CARD_NAME]
    assert after == hashes(sets.path)
    header = yaml.safe_load((path / CARD_NAME).read_text().split("---\n")[1])
    assert [each["config_name"] for each in header["configs"]] == ["default", "layers", "max"]
