"""Commands that open an output end with an exit code and one short message, whatever its JSON files hold."""

import json
import shutil
from copy import deepcopy
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.finished_runs import finish
from tests.outputs import column, write_output
from tests.probes import ROWS, problem
from varve import Job
from varve.cli.main import run_command

# Values of other types, out of range, or with paths that lead out of the folder.
VALUES = [
    None, True, -1, 0, 1, 7, 10**6, 10**12, 10**18, 10**40, -(10**40), 1.5, float("nan"), float("inf"), 1e308, "",
    "x", "0" * 64, "../../../etc/passwd", "/etc/passwd", "\ud800", "a\nb", [], [0], [[0, 1]], {}, {"a": 1}, {"a": {}},
    [10**18] * 3, "s3://nowhere/x", "x" * 5000,
]  # fmt: skip
MESSAGE_CHARACTERS = 6000
FEW = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


def paths(content, path=()):
    """The path of every value of a JSON document."""
    yield path
    entries = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in entries:
        yield from paths(value, (*path, key))


def mutate(content, data: st.DataObject):
    """The document with one to three values replaced or left out."""
    for _ in range(data.draw(st.integers(1, 3))):
        *parents, key = data.draw(st.sampled_from([path for path in paths(content) if path] or [("a",)]))
        parent = content
        for step in parents:
            parent = parent[step]
        if data.draw(st.integers(0, 4)):
            parent[key] = deepcopy(data.draw(st.sampled_from(VALUES)))
        else:
            del parent[key]
    return content


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    (folder / "docs").mkdir()
    for shard in range(2):
        table = {"text": [f"text {row}" for row in range(12)], "doc_id": range(12)}
        pq.write_table(pa.table(table), folder / f"docs/{shard}.parquet")
    job = {
        "source": {"dataset": str(folder / "docs"), "text": "text", "keep": ["doc_id"]},
        "model": {"name": tiny("bert"), "max_tokens": 16},
        "output": {"path": str(folder / "out"), "rows_per_part": 5},
    }
    finish(Job.parse(job))
    return folder / "out"


@pytest.fixture(scope="module")
def probed(tmp_path_factory) -> Path:
    """A folder with an output and a probe of it."""
    folder = tmp_path_factory.mktemp("probed")
    vectors, target = problem()
    kept = {"label": [f"class {code}" for code in target], "length": np.arange(ROWS)}
    write_output(folder / "out", {column("e", vectors.shape[1]): vectors}, kept)
    argv = [str(folder / "out"), "--label", "label", "--text", "none", "--output", str(folder / "probe")]
    assert run_command(["probe", *argv]) == 0
    return folder


def run(capsys, *argv: object) -> None:
    """Run a command, which must end with an exit code and a short message."""
    capsys.readouterr()
    assert run_command([str(argument) for argument in argv]) in {0, 1, 2}
    assert len(capsys.readouterr().err) < MESSAGE_CHARACTERS


@pytest.mark.parametrize("name", ["manifest.json", "job.json"])
@FEW
@given(data=st.data())
def test_changed_json_of_an_output_gives_an_exit_code_in_status_and_verify(name, data, finished, tmp_path, capsys):
    output = Path(shutil.copytree(finished, tmp_path / "out", dirs_exist_ok=True))
    path = output / "_varve" / name
    path.write_text(json.dumps(mutate(json.loads((finished / "_varve" / name).read_text()), data)))
    run(capsys, "status", output)
    run(capsys, "verify", output)


@pytest.mark.parametrize("name", ["out/_varve/manifest.json", "probe/model/model.json"])
@FEW
@given(data=st.data())
def test_changed_json_gives_an_exit_code_in_probe_and_predict(name, data, probed, tmp_path, capsys):
    folder = Path(shutil.copytree(probed, tmp_path / "probed", dirs_exist_ok=True))
    shutil.rmtree(folder / "out/predictions", ignore_errors=True)
    (folder / name).write_text(json.dumps(mutate(json.loads((probed / name).read_text()), data)))
    run(capsys, "predict", folder / "probe", folder / "out")
    if name.startswith("out/"):
        argv = ["--label", "label", "--features", "e", "--output", tmp_path / "again"]
        run(capsys, "probe", folder / "out", *argv)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"1", b"null", b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b"1" * 5000]
)
def test_file_that_is_no_manifest_gives_an_exit_code(content, finished, probed, tmp_path, capsys):
    output = Path(shutil.copytree(finished, tmp_path / "out"))
    for name in ("manifest.json", "job.json"):
        (output / "_varve" / name).write_bytes(content)
        run(capsys, "status", output)
        run(capsys, "verify", output)
        run(capsys, "predict", probed / "probe", output)
    shutil.copytree(probed / "probe", tmp_path / "probe")
    (tmp_path / "probe/model/model.json").write_bytes(content)
    run(capsys, "predict", tmp_path / "probe", probed / "out")
