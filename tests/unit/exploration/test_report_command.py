"""`varve report` and the file that it writes."""

import json
import os
import sys
from types import SimpleNamespace

import datasets
import numpy as np
import pytest

from tests.outputs import column, write_output
from varve.cli import embed as embed_command
from varve.cli.main import run_command
from varve.errors import JobError, RunError
from varve.exploration.report_file import ReportFile
from varve.output.dataset_card import update_card
from varve.storage.object_store import Storage


@pytest.fixture
def path(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    kept = {"text": [f"text {row}" for row in range(40)], "kind": ["a", "b"] * 20}
    return write_output(tmp_path / "out", {column("a", 8): vectors, column("b", 8, layer=3): vectors}, kept)


def test_report_command_writes_the_page_into_the_output(path, capsys):
    assert run_command(["report", path, "--color", "kind"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == f"Report: {path}/report.html"
    assert "40 rows" in printed[0]
    page = open(f"{path}/report.html", encoding="utf-8").read()  # noqa: PTH123, SIM115
    assert page.lower().startswith("<!doctype html>")
    assert run_command(["report", path, "--seed", "1"]) == 0  # an earlier report is replaced
    assert sorted(os.listdir(path)) == ["_varve", "data", "report.html"]  # noqa: PTH208


def test_report_command_as_json_prints_figures(path, tmp_path, capsys):
    page = tmp_path / "new folder" / "page.html"
    assert run_command(["report", path, "--output", str(page), "--json", "--price-per-hour", "2.5"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["report"] == str(page)
    assert page.exists()
    assert printed["num_sampled"] == 40
    assert [each["name"] for each in printed["vectors"]] == ["a", "b"]
    assert printed["similarity"]["values"][0][1] == pytest.approx(1)
    assert printed["near_duplicates"]["num_near_duplicates"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--color", "none"], "--color none: the run kept no such column; it has: text, kind, num_tokens, truncated"),
        (["--seed", "-1"], "--seed: -1 is not allowed"),
        (["--price-per-hour", "inf"], "--price-per-hour: inf is not allowed"),
        (["--output", ""], "--output: '' is not the name of a file"),
        (["--output", "."], "--output: '.' is a folder"),
        (["--output", "x" * 300], "cannot be read: File name too long"),
    ],
)
def test_report_command_of_a_wrong_argument_names_it(path, capsys, arguments, message):
    assert run_command(["report", path, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not os.path.exists(f"{path}/report.html")  # noqa: PTH110


def test_report_command_without_its_extra_says_how_to_install_it(path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.setattr("varve.cli.command.find_spec", lambda _name: None)
    assert run_command(["report", path]) == 2
    assert "needs jinja2: run pip install '.[report]'" in capsys.readouterr().err


def test_report_file_of_another_kind_is_kept(path, capsys):
    place = f"{path}/report.html"
    open(place, "w").write("<html>mine</html>")  # noqa: PTH123, SIM115
    assert run_command(["report", path]) == 2
    assert "is not a report of Varve" in capsys.readouterr().err
    assert open(place).read() == "<html>mine</html>"  # noqa: PTH123, SIM115


def test_report_file_that_appears_during_the_work_is_kept(tmp_path):
    place = ReportFile.choose(str(tmp_path))
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(JobError, match="is not a report of Varve"):
        place.write("<html></html>")
    assert (tmp_path / "report.html").read_text() == "mine"


def test_report_file_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises((RunError, JobError), match="file"):
        ReportFile.choose(str(tmp_path), str(tmp_path / "file" / "report.html")).write("page")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file"]


def test_report_file_in_a_store_is_replaced_only_if_it_is_a_report(tmp_path):
    address = f"memory://{tmp_path.name}"
    for page in ("<html>one</html>", "<html>\udcff two</html>"):
        ReportFile.choose(address).write(page)
    written = Storage(address).read("report.html") or b""
    assert written.startswith(b"<html>? two</html>\n")
    assert ReportFile.choose(address, f"{address}/report.html").address == f"{address}/report.html"
    Storage(address).write("report.html", 4, lambda: [b"mine"])
    with pytest.raises(JobError, match="is not a report of Varve"):
        ReportFile.choose(address)


def test_output_with_a_report_opens_as_a_dataset(path, tmp_path):
    update_card(path)
    assert run_command(["report", path]) == 0
    loaded = datasets.load_dataset(path, cache_dir=str(tmp_path / "cache"))
    assert loaded["train"].num_rows == 40


@pytest.fixture
def finished_job(path, monkeypatch):
    """Arguments of `varve embed` for a job whose run ends at once, as finished."""
    manifest = SimpleNamespace(path=path, summary=lambda: {"num_rows": 40})
    outcome = SimpleNamespace(manifest=manifest, finished_before=True)
    monkeypatch.setattr("varve.driver.embed.embed_in_own_process", lambda _job: outcome)
    monkeypatch.setattr(embed_command, "nothing_to_do", lambda _manifest: "done\n")
    return ["embed", "--dataset", "docs", "--text", "text", "--model", "m", "--output", path]


def test_embed_with_a_report_writes_it_after_the_run(finished_job, path, capsys):
    assert run_command([*finished_job, "--report"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"Report: {path}/report.html"
    assert run_command([*finished_job, "--report", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"] == f"{path}/report.html"
    assert run_command([*finished_job, "--json"]) == 0
    assert "report" not in json.loads(capsys.readouterr().out)


def test_embed_whose_report_fails_has_still_succeeded(finished_job, path, capsys):
    open(f"{path}/report.html", "w").write("mine")  # noqa: PTH123, SIM115
    assert run_command([*finished_job, "--report"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "done\n"
    assert f"Try `varve report {path}`" in captured.err
