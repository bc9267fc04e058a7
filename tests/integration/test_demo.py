import json

import pyarrow.parquet as pq

from varve.cli.demo import INDEX_KIND, MAX_ROWS
from varve.cli.main import run_command


def test_demo_answers_searches_and_verifies_its_output(tmp_path, capsys):
    assert run_command(["demo", "--output", str(tmp_path / "demo"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["verified"]
    assert result["num_rows"] == MAX_ROWS
    assert result["index"]["kind"] == INDEX_KIND
    proved = result["index"]["measurements"][-1]
    assert proved["low"] >= 0.95
    assert proved["num_queries"] == 1000
    found = {question: [name for _, name, _ in answers] for question, answers in result["searches"].items()}
    assert "shlex.split" in found["split a string into words"]
    assert any("remove" in name for name in found["remove a directory and everything in it"])
    assert "statistics.mean" in found["compute the arithmetic average of numbers"]
    page = (tmp_path / "demo/features/report.html").read_text("utf-8")
    assert result["report"] == str(tmp_path / "demo/features/report.html")
    assert "3,000 rows" in page
    assert "No history" not in page
    part = next((tmp_path / "demo/features/data").glob("*.parquet"))
    assert {"name", "embedding", "cls_00", "cls_03", "cls_06"} <= set(pq.read_schema(part).names)


def test_demo_keeps_a_folder_that_it_did_not_write(tmp_path, capsys):
    (tmp_path / "precious.txt").write_text("mine")
    assert run_command(["demo", "--output", str(tmp_path)]) == 2
    assert (tmp_path / "precious.txt").read_text() == "mine"
    assert "--output" in capsys.readouterr().err
