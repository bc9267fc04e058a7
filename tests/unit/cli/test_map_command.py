"""`varve map`: its report, its JSON, the commands that it prints, and the viewer if it is installed."""

import json
import re
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from glob import glob

import duckdb
import numpy as np
import pytest

from tests.outputs import column, write_output
from varve.cli.main import run_command

ROWS = 120


@pytest.fixture
def path(tmp_path) -> str:
    values = np.random.default_rng(0).normal(size=(ROWS, 6)).astype(np.float32)
    kept = {"text": [f"<script>{row}</script>" for row in range(ROWS)], "label": [row % 3 for row in range(ROWS)]}
    return write_output(tmp_path / "it's a folder", {column("cls", 6): values}, kept, errors=(3,), rows_per_part=50)


def test_printed_commands_open_the_map(path, capsys):
    assert run_command(["map", path, "--method", "pca", "--color", "label", "--text", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["num_rows"], report["num_sampled"], report["method"]) == (ROWS, ROWS - 1, "pca")
    assert duckdb.sql(f"SELECT count(x) FROM ({report['commands']['duckdb']})").fetchall() == [(ROWS - 1,)]
    _, files, *options = shlex.split(report["commands"]["embedding-atlas"])
    assert len(glob(files)) == 3  # noqa: PTH207 (as a shell expands it)
    assert options == ["--x", "x", "--y", "y", "--neighbors", "neighbours", "--text", "text", "--host", "127.0.0.1"]


def test_report_names_the_folder_and_the_second_call_changes_nothing(path, capsys):
    for _ in range(2):
        assert run_command(["map", path, "--method", "pca"]) == 0
        assert capsys.readouterr().out.startswith(f"Map: {path}/maps/cls\n  rows       120, fitted on 119\n")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(["--feature", "none"], "no feature 'none'"), (["--open"], "--open needs embedding-atlas: run pip install")],
)
def test_refusals_have_exit_code_2_and_no_traceback(path, arguments, reason, capsys, monkeypatch):
    monkeypatch.setattr("varve.cli.map.find_spec", lambda _name: None)
    assert run_command(["map", path, *arguments]) == 2
    assert reason in capsys.readouterr().err


def test_viewer_of_a_map_in_a_store_is_refused(capsys):
    assert run_command(["map", "s3://bucket/run", "--open"]) == 2
    assert "is in an object store" in capsys.readouterr().err


def fetch(address: str, tries: int = 600) -> bytes:
    """What a server returns that prints its address some moments before it listens."""
    for _ in range(tries):
        try:
            with urllib.request.urlopen(address, timeout=60) as answer:
                return answer.read()
        except urllib.error.URLError:
            time.sleep(0.1)
    raise TimeoutError(address)


def test_viewer_serves_the_map_on_loopback(path):
    pytest.importorskip("embedding_atlas", reason="needs the extra `map`")
    command = [sys.executable, "-m", "varve", "map", path, "--method", "pca", "--text", "--open"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as viewer:
        try:
            address = next(m[1] for line in viewer.stdout if (m := re.search(r"(http://127\.0\.0\.1:\d+)", line)))
            props = json.loads(fetch(f"{address}/data/metadata.json"))["props"]
        finally:
            viewer.terminate()
    assert "neighbours" in json.dumps(props)
