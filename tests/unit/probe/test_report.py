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
    text = printed(path, tmp_path / "kind", capsys, "--label", "kind")
    assert "AUC is undefined" in text
    assert "All 100 test rows have the same label" in text
    assert "95 % interval" not in text
    text = printed(path, tmp_path / "size", capsys, "--label", "size")
    assert "R² is undefined" in text
    assert "- (- to -)" in text
    assert "All 100 test rows have the same label" in text


@pytest.mark.parametrize(("num_test", "is_few"), [(29, True), (30, False)])
def test_headline_on_few_test_rows_says_that_they_are_too_few(output, num_test, is_few, tmp_path, capsys):
    path = output(split=["train"] * 500 + ["val"] * (100 - num_test) + ["test"] * num_test)
    text = printed(path, tmp_path / "probe", capsys, "--label", "label")
    assert ("29 test rows are too few for a reliable figure or interval." in text) == is_few


def test_headline_on_few_test_groups_says_that_they_are_too_few(output, tmp_path, capsys):
    splits = ["train"] * 400 + ["val"] * 100 + ["test"] * 100
    path = output(split=splits, doc=[f"{split} {row % 29}" for row, split in enumerate(splits)])
    text = printed(path, tmp_path / "probe", capsys, "--label", "label", "--groups", "doc")
    assert "29 test groups of rows are too few for a reliable figure or interval." in text


def test_labels_that_a_split_lacks_are_named(output, tmp_path, capsys):
    kinds = ["ham", "spam", "eggs", "rice"] * 100 + ["ham"] * 100 + ["ham", "spam"] * 50
    path = output(kind=kinds, split=["train"] * 400 + ["val"] * 100 + ["test"] * 100)
    text = printed(path, tmp_path / "probe", capsys, "--label", "kind")
    assert "every validation row has the same label: they do not show which model is best" in text
    assert "no test row has the label 'eggs', 'rice': no figure shows how well it is predicted" in text


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
