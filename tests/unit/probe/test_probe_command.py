import os
import signal
import subprocess
import sys

import pytest

from tests.outputs import column, write_output
from tests.probes import ROWS, WIDTH, problem
from varve.cli.main import run_command


@pytest.mark.parametrize("seed", ["-1", str(2**32)])
def test_seed_outside_32_bits_exits_with_2(seed, output, tmp_path, capsys):
    assert run_command(["probe", output(), "--label", "label", "--seed", seed, "--output", str(tmp_path / "p")]) == 2
    error = capsys.readouterr().err
    assert f"--seed: {seed} " in error
    assert "0 to 4294967295" in error


@pytest.mark.slow
def test_report_and_model_are_written_and_read_as_utf8_in_any_locale(output, tmp_path):
    path = output(word=["gr\u00fcn", "rot"] * (ROWS // 2))
    argv = ["--label", "word", "--features", "cls_00", "--text", "none", "--output", str(tmp_path / "p")]
    env = os.environ | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    for command in (["probe", path, *argv], ["predict", str(tmp_path / "p"), path]):
        done = subprocess.run([sys.executable, "-m", "varve", *command], env=env, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
    assert "gr\u00fcn" in (tmp_path / "p/report.html").read_text("utf-8")


@pytest.mark.slow
def test_stopped_probe_does_not_promise_to_resume(tmp_path):
    inputs, target = problem()
    features = {column(f"cls_{layer:02d}", WIDTH, layer=layer): inputs for layer in range(60)}  # work for minutes
    path = write_output(tmp_path / "run", features, {"label": target.tolist()})
    argv = ["probe", path, "--label", "label", "--model", "mlp", "--text", "none", "--output", str(tmp_path / "probe")]
    with subprocess.Popen([sys.executable, "-m", "varve", *argv], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline().startswith("1 of 62 models")
        process.send_signal(signal.SIGINT)
        error = process.stderr.read()
    assert process.returncode == 1
    last = error.splitlines()[-1]
    assert last.startswith("varve probe: stopped")
    assert "resume" not in last


@pytest.mark.parametrize("command", ["probe", "demo"])
@pytest.mark.parametrize(("place", "reason"), [("file/below", "Not a directory"), ("s3://bucket/p", "s3://bucket/p")])
def test_output_that_cannot_be_written_is_rejected_before_the_work(
    command, place, reason, output, tmp_path, capsys, monkeypatch
):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    argv = [output(), "--label", "label"] if command == "probe" else []
    assert run_command([command, *argv, "--output", place]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert "models:" not in error
    assert not (tmp_path / "s3:").exists()
