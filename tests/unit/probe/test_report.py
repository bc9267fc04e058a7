import json
from pathlib import Path

import numpy as np
import pytest

from tests.probes import ROWS
from varve.cli.main import run_command


def printed(path, folder, capsys, *argv) -> str:
    """What the command prints after it has written all files to the folder."""
    assert run_command(["probe", path, *argv, "--features", "cls_01", "--text", "none", "--output", str(folder)]) == 0
    assert {entry.name for entry in folder.iterdir()} == {"probe.json", "model", "layers.svg", "report.html"}
    return capsys.readouterr().out


def test_headline_says_if_handcrafted_columns_alone_are_best(output, tmp_path, capsys):
    sizes = np.random.default_rng(0).normal(size=ROWS)
    path = output(sign=np.where(sizes > 0, "more", "less").tolist(), size=sizes.tolist())
    text = printed(path, tmp_path / "probe", capsys, "--label", "sign", "--with", "size")
    assert "No feature of the run is better than the hand-crafted columns alone. " in text


def test_metrics_that_the_test_rows_do_not_define_are_reported_as_undefined(output, tmp_path, capsys):
    splits = ["train"] * 400 + ["val"] * 100 + ["test"] * 100
    kinds = ["ham", "spam"] * 250 + ["ham"] * 100
    sizes = [*np.arange(500.0).tolist(), *[7.0] * 100]
    path = output(kind=kinds, size=sizes, split=splits)
    assert "AUC is undefined" in printed(path, tmp_path / "kind", capsys, "--label", "kind")
    text = printed(path, tmp_path / "size", capsys, "--label", "size")
    assert "R² is undefined" in text
    assert "- (- to -)" in text


def test_values_that_every_model_misses_are_reported(output, tmp_path, capsys):
    sizes = [*np.arange(500.0).tolist(), *np.linspace(1e6, 1e6 + 1, 100).tolist()]
    path = output(size=sizes, split=["train"] * 400 + ["val"] * 100 + ["test"] * 100)
    text = printed(path, tmp_path / "probe", capsys, "--label", "size")
    best = json.loads((tmp_path / "probe/probe.json").read_text())["results"][0]
    assert best["test"]["r2"]["high"] < -1
    assert f"{best['test']['r2']['value']:.3f}" in text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_full_disk_is_named_when_the_report_cannot_be_written(output, tmp_path, capsys):
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe/probe.json").symlink_to("/dev/full")
    argv = ["probe", output(), "--label", "label", "--features", "cls_01", "--text", "none"]
    assert run_command([*argv, "--output", str(tmp_path / "probe")]) == 1
    error = capsys.readouterr().err
    assert str(tmp_path / "probe") in error
    assert "No space left" in error
