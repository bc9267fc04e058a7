from pathlib import Path

import pyarrow.parquet as pq

from tests.probes import ROWS
from varve.cli.main import run_command


def test_predictions_keep_columns_except_those_with_names_of_predictions(output, tmp_path, capsys):
    path, probe = output(prediction=["old"] * ROWS), str(tmp_path / "p")
    argv = ["probe", path, "--label", "label", "--features", "cls_01", "--text", "none", "--output", probe]
    assert run_command(argv) == 0
    assert run_command(["predict", probe, path, "--keep", "prediction"]) == 2
    assert "--keep prediction: " in capsys.readouterr().err
    assert run_command(["predict", probe, path, "--keep", "doc, length"]) == 0
    part = next(Path(path).glob("predictions/label/*.parquet"))
    assert pq.read_schema(part).names[:3] == ["doc", "length", "prediction"]
