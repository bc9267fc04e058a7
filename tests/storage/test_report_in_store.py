"""`varve report` of an output in S3: the page is an object of the output."""

import json

import numpy as np

from tests.outputs import column, write_output
from varve.cli.main import run_command
from varve.storage.object_store import Storage


def test_report_of_an_output_in_s3_is_an_object_beside_it(container, capsys):
    address = f"{container('moto')}/out"
    vectors = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    write_output(address, {column("v", 8): vectors}, {"text": [f"text {row}" for row in range(300)]}, rows_per_part=40)
    for _ in range(2):  # the second one replaces the first
        assert run_command(["report", address, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["report"] == f"{address}/report.html"
    page = Storage(address).read("report.html") or b""
    assert b"text 7" in page
    Storage(address).write("report.html", 4, lambda: [b"mine"])
    assert run_command(["report", address]) == 2
    assert "is not a report of Varve" in capsys.readouterr().err
