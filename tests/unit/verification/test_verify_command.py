"""What `varve verify` prints, and its exit codes."""

import json
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.finished_runs import finish
from varve import Job
from varve.cli.main import run_command


def job(folder: Path, model: str, texts: list[str]) -> Job:
    (folder / "docs").mkdir()
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), folder / "docs/0.parquet")
    return Job.parse(
        {
            "source": {"dataset": str(folder / "docs"), "text": "text"},
            "model": {"name": model, "max_tokens": 16},
            "output": {"path": str(folder / "out")},
        }
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny):
    """(output, its manifest)."""
    folder = tmp_path_factory.mktemp("command")
    return folder / "out", finish(job(folder, tiny("bert"), ["one text", "another text"]))


def test_hash_of_the_manifest_is_recorded_and_compared(finished, capsys):
    output, manifest = finished
    expected = sha256((output / "_varve/manifest.json").read_bytes()).hexdigest()
    assert manifest.summary()["manifest_sha256"] == expected
    assert run_command(["verify", str(output), "--expect", f"sha256:{expected}"]) == 0
    assert "  ok       manifest\n" in capsys.readouterr().out
    assert run_command(["verify", str(output), "--expect", "0" * 64]) == 1
    assert f"the SHA-256 of _varve/manifest.json is {expected}, expected 000" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "abc", "z" * 64, "md5:" + "0" * 64])
def test_expected_hash_that_is_none_exits_with_2(text, finished, capsys):
    assert run_command(["verify", str(finished[0]), f"--expect={text}"]) == 2
    assert "expected 64 hexadecimal digits" in capsys.readouterr().err


def test_canary_of_no_row_is_skipped_and_named_at_the_end(tmp_path, tiny, capsys):
    finish(job(tmp_path, tiny("bert"), []))
    assert run_command(["verify", str(tmp_path / "out")]) == 0
    report = capsys.readouterr().out
    assert "  skipped  canary: no row could be compared" in report
    assert report.splitlines()[-1].startswith("Verified, except what was skipped of canary: ")
    assert run_command(["verify", str(tmp_path / "out"), "--json"]) == 0
    canary = next(c for c in json.loads(capsys.readouterr().out)["checks"] if c["check"] == "canary")
    assert (canary["passed"], canary["failures"], len(canary["skipped"])) == (True, [], 1)


def test_missing_source_fails_the_canary_and_no_other_check(finished, capsys):
    output, _ = finished
    source = output.parent / "docs"
    moved = source.rename(source.with_name("moved"))
    try:
        assert run_command(["verify", str(output), "--json"]) == 1
    finally:
        moved.rename(source)
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert [check["check"] for check in checks if not check["passed"]] == ["canary"]
