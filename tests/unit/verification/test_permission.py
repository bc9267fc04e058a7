"""No code that an output names runs, unless the user's command permits it."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.finished_runs import finish
from varve import Job
from varve.cli.main import run_command

# The code leaves a file where it runs.
FUNCTIONS = """
import pathlib
def chars(rows):
    pathlib.Path({mark!r}).touch()
    return [len(text) for text in rows["text"].to_pylist()]
"""
MODEL = """
import pathlib
from transformers import BertModel
class MarkingModel(BertModel):
    def __init__(self, *arguments, **options):
        pathlib.Path({mark!r}).touch()
        super().__init__(*arguments, **options)
"""
EVIL = """
import pathlib
pathlib.Path("ran").touch()
def run(rows): return [0] * len(rows)
"""


def make(folder: Path, model: str, features: dict, **settings) -> Path:
    (folder / "docs").mkdir(parents=True)
    pq.write_table(pa.table({"text": [f"text {row}" for row in range(20)]}), folder / "docs/0.parquet")
    content = {
        "source": {"dataset": str(folder / "docs"), "text": "text"},
        "model": {"name": model, "max_tokens": 16, **settings},
        "features": {"e": {"pool": "mean"}, **features},
        "output": {"path": str(folder / "out")},
    }
    finish(Job.parse(content).in_folder(str(folder / "code")))
    return folder / "out"


@pytest.fixture(scope="module")
def with_functions(tmp_path_factory, tiny):
    """(output, folder of its code, file that the code writes when it is imported)."""
    folder = tmp_path_factory.mktemp("functions")
    (folder / "code").mkdir()
    (folder / "code/marking_features.py").write_text(FUNCTIONS.format(mark=str(folder / "mark")))
    features = {"n": {"python": "marking_features:chars", "type": "int32"}}
    return make(folder, tiny("bert"), features), folder / "code", folder / "mark"


@pytest.fixture(scope="module")
def with_remote_code(tmp_path_factory, tiny):
    """(output, file that the checkpoint's code writes when it is imported)."""
    folder = tmp_path_factory.mktemp("remote")
    model = Path(shutil.copytree(tiny("bert"), folder / "model"))
    (model / "modeling_marking.py").write_text(MODEL.format(mark=str(folder / "mark")))
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_marking.MarkingModel"}
    (model / "config.json").write_text(json.dumps(config))
    return make(folder, str(model), {}, trust_remote_code=True), folder / "mark"


def verify(capsys, *argv: object) -> tuple[int, str]:
    capsys.readouterr()
    code = run_command(["verify", *map(str, argv)])
    return code, capsys.readouterr().out


def set_in_job(output: Path, change) -> None:
    path = output / "_varve/job.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_functions_do_not_run_where_job_json_says(with_functions, capsys):
    output, _, mark = with_functions
    mark.unlink(missing_ok=True)
    exit_code, report = verify(capsys, output)
    assert not mark.exists()
    assert exit_code == 0
    assert "  skipped  canary: n: " in report
    assert "--code FOLDER" in report
    assert report.splitlines()[-1].startswith("Verified, except what was skipped of canary")


def test_functions_run_from_the_folder_that_the_user_names_if_their_hash_is_that_of_the_run(
    with_functions, tmp_path, capsys
):
    output, code, mark = with_functions
    mark.unlink(missing_ok=True)
    exit_code, report = verify(capsys, output, "--code", code)
    assert (exit_code, mark.exists()) == (0, True)
    assert "  ok       canary" in report
    changed = tmp_path / "marking_features.py"
    changed.write_text((code / "marking_features.py").read_text() + "# changed\n")
    mark.unlink()
    exit_code, report = verify(capsys, output, "--code", tmp_path)
    assert (exit_code, mark.exists()) == (1, False)
    assert "features.n.code" in report


def test_code_of_the_checkpoint_runs_only_with_the_flag(with_remote_code, capsys):
    output, mark = with_remote_code
    mark.unlink(missing_ok=True)
    exit_code, report = verify(capsys, output, "--json")
    canary = next(check for check in json.loads(report)["checks"] if check["check"] == "canary")
    assert (exit_code, mark.exists(), canary["failures"]) == (0, False, [])
    assert "--trust-remote-code" in canary["skipped"][0]
    exit_code, report = verify(capsys, output, "--trust-remote-code")
    assert (exit_code, mark.exists()) == (0, True)
    assert report.splitlines()[-1].startswith("Verified: ")


def test_module_in_the_current_folder_that_a_hostile_job_json_names_does_not_run(
    with_functions, tmp_path, monkeypatch, capsys
):
    output = Path(shutil.copytree(with_functions[0], tmp_path / "out"))
    (tmp_path / "evil_of_output.py").write_text(EVIL)
    (tmp_path / "evil_package").mkdir()
    (tmp_path / "evil_package/__init__.py").write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # as with `python -m varve`
    for module in ("evil_of_output", "evil_package.absent"):
        set_in_job(output, lambda job, name=module: job["job"]["features"]["n"].update(python=f"{name}:run"))
        set_in_job(output, lambda job: job["code"].update(folder="."))
        assert verify(capsys, output)[0] == 1
        assert verify(capsys, output, "--code", with_functions[1])[0] == 1
        assert run_command(["status", str(output)]) == 0
        assert run_command(["clean", str(output)]) == 0
    assert not (tmp_path / "ran").exists()
